"""Qwen3-Coder and later Qwens: `<tool_call><function=name><parameter=key>` value `</parameter></function></tool_call>`.
Values are bare text on lines of their own; the tool's schema says what they are."""

from __future__ import annotations

import re

from octavo.server.text_stream import Steps
from octavo.server.tool_parsers.bare_arguments import BareArgumentCalls
from octavo.server.tool_parsers.protocol import MAX_NAME, NAME

_FUNCTION, _PARAMETER = "<function=", "<parameter="
_END_OF_PARAMETER, _END_OF_FUNCTION, _END = "</parameter>", "</function>", "</tool_call>"
_END_OF_ALL = f"{_END_OF_FUNCTION}\n{_END}"  # ends a value too, if its own end was forgotten
_KEY = re.compile(r"[^<>\n]*")


class Qwen3CoderCalls(BareArgumentCalls):
    markers = ("<tool_call>", _END)
    openings = ("<tool_call>", _FUNCTION)
    closings = (_END,)

    def read_call(self, opening: str) -> Steps[None]:
        stream = self.stream
        if opening != _FUNCTION:
            yield from stream.whitespace()
            if not (yield from stream.accept(_FUNCTION)):
                return
        name = yield from stream.run(NAME, MAX_NAME)
        # Without <tool_call> around it, only a known function is a call.
        if not name or (opening == _FUNCTION and name not in self.tools) or not (yield from stream.accept(">")):
            return
        yield from self.start_arguments(name)
        while True:
            stream.record()
            yield from stream.whitespace()
            if not (yield from stream.accept(_PARAMETER, cut_off=True)):
                break
            key = (yield from stream.run(_KEY, MAX_NAME)).strip()
            if not key or not (yield from stream.accept(">")):
                if stream.is_at_end:  # broken off within a parameter
                    stream.commit()
                    return
                break
            stream.commit()
            end = yield from self.argument(key, (_END_OF_PARAMETER, _END_OF_ALL), margin="\n")
            if not end:
                return
            if end == _END_OF_ALL:
                yield from self.end_arguments()
                self._is_open = False
                return
        yield from self.end_arguments()
        if (yield from stream.accept(_END_OF_FUNCTION, cut_off=True)):
            stream.commit()
            yield from self.close()
