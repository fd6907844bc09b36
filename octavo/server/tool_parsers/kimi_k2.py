"""Kimi K2: `<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{...}<|tool_call_end|>` in a section.
The text before the arguments is the call's id; its number counts the calls of the whole conversation."""

from __future__ import annotations

import re

from octavo.server.json_stream import JsonScanner
from octavo.server.text_stream import Steps
from octavo.server.tool_parsers.protocol import MAX_NAME, NAME, MarkedCalls

_BEGIN, _ARGUMENTS, _END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
_ID = re.compile(r"(?:functions\.)?(?P<name>.+?)(?P<number>:\d+)?")


class KimiK2Calls(MarkedCalls):
    markers = (_BEGIN, _ARGUMENTS, _END)
    openings = (_BEGIN,)
    closings = (_END,)
    dropped = (
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
        "<|tool_call_section_begin|>",
        "<|tool_call_section_end|>",
    )

    def read_call(self, opening: str) -> Steps[None]:
        stream = self.stream
        yield from stream.whitespace()
        call_id = yield from stream.run(NAME, MAX_NAME)
        yield from stream.whitespace()
        if not (yield from stream.accept(_ARGUMENTS)):
            return
        yield from stream.whitespace()
        match = _ID.fullmatch(call_id)
        if match is None or (yield from stream.peek()) != "{":
            return
        yield self.begin(match["name"], call_id if match["number"] else None)
        if (yield from stream.json_value(JsonScanner(), self.arguments)):
            yield from self.close()
        else:
            yield from self.copy_malformed()
