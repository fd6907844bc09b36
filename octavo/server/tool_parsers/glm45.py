"""GLM 4.5 to 4.7: `<tool_call>name<arg_key>key</arg_key><arg_value>` value `</arg_value></tool_call>`; 4.5 breaks lines
between them. Strings are bare text, other values JSON; the tool's schema tells which."""

from __future__ import annotations

import re

from octavo.server.text_stream import Steps
from octavo.server.tool_parsers.bare_arguments import BareArgumentCalls
from octavo.server.tool_parsers.protocol import MAX_NAME, NAME

_KEY, _END_OF_KEY, _VALUE, _END_OF_VALUE = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
_END = "</tool_call>"
_KEY_CHARACTERS = re.compile(r"[^<>\n]*")


class Glm45Calls(BareArgumentCalls):
    markers = ("<tool_call>", _END, _KEY, _END_OF_KEY, _VALUE, _END_OF_VALUE)
    openings = ("<tool_call>",)
    closings = (_END,)

    def read_call(self, opening: str) -> Steps[None]:
        stream = self.stream
        yield from stream.whitespace()
        name = yield from stream.run(NAME, MAX_NAME)
        yield from stream.whitespace()
        if not name:
            return
        began = False
        while (marker := (yield from stream.accept_any((_KEY, _END), cut_off=began))) == _KEY:
            key = (yield from stream.run(_KEY_CHARACTERS, MAX_NAME)).strip()
            is_whole = bool(key) and (yield from stream.accept(_END_OF_KEY, cut_off=began))
            yield from stream.whitespace()
            if not is_whole or not (yield from stream.accept(_VALUE, cut_off=began)):
                if began and stream.is_at_end:  # broken off within an argument
                    stream.commit()
                    return
                break
            if not began:
                yield from self.start_arguments(name)
                began = True
            stream.commit()
            if not (yield from self.argument(key, (_END_OF_VALUE,), margin="")):
                return
            stream.record()
            yield from stream.whitespace()
        if marker == _END:
            if not began:
                yield from self.start_arguments(name)
            stream.commit()
            self._is_open = False
        elif not began:
            return
        yield from self.end_arguments()
