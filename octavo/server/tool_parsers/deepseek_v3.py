"""DeepSeek V3 and R1: `<｜tool▁call▁begin｜>function<｜tool▁sep｜>name`, then a block of JSON in a code fence,
`<｜tool▁call▁end｜>`; V3.1: `<｜tool▁call▁begin｜>name<｜tool▁sep｜>{...}<｜tool▁call▁end｜>`."""

from __future__ import annotations

from octavo.server.json_stream import JsonScanner
from octavo.server.text_stream import Steps
from octavo.server.tool_parsers.protocol import MAX_NAME, NAME, MarkedCalls

_BEGIN, _SEPARATOR, _END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_KIND = "function"  # of tool; V3 writes it before the name


class DeepseekV3Calls(MarkedCalls):
    markers = (_BEGIN, _SEPARATOR, _END)
    openings = (_BEGIN,)
    closings = (_END,)
    dropped = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")

    def read_call(self, opening: str) -> Steps[None]:
        stream = self.stream
        yield from stream.whitespace()
        name = yield from stream.run(NAME, MAX_NAME)
        yield from stream.whitespace()
        if not (yield from stream.accept(_SEPARATOR)):
            return
        yield from stream.whitespace()
        if name == _KIND and (yield from stream.peek()) != "{":
            name = yield from stream.run(NAME, MAX_NAME)
            yield from stream.whitespace()
            yield from stream.accept("```json")
            yield from stream.whitespace()
        if not name or (yield from stream.peek()) != "{":
            return
        yield self.begin(name)
        if (yield from stream.json_value(JsonScanner(), self.arguments)):
            yield from self.close()
        else:
            yield from self.copy_malformed()
