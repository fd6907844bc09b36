"""Mistral: `[TOOL_CALLS] [{"name": ..., "arguments": {...}}]`, and from tokenizer version 11 on, for each call,
`[TOOL_CALLS]name[ARGS]{...}`, where `[ARGS]` may be missing and `[CALL_ID]id` may stand before it."""

from __future__ import annotations

import re
import secrets
import string

from octavo.server.json_stream import JsonScanner
from octavo.server.text_stream import Steps
from octavo.server.tool_parsers.json_calls import JsonCalls
from octavo.server.tool_parsers.protocol import MAX_NAME, NAME

_ID = re.compile(r"[A-Za-z0-9_\-]*")
_ID_CHARACTERS = string.ascii_letters + string.digits


class MistralCalls(JsonCalls):
    markers = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
    openings = ("[TOOL_CALLS]",)

    def new_id(self) -> str:
        """Mistral's templates take ids of nine letters and digits, no others."""
        return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(9))

    def read_call(self, opening: str) -> Steps[None]:
        stream = self.stream
        yield from stream.whitespace()
        if (yield from stream.peek()) in ("[", "{"):
            yield from self.objects()
            return
        name = yield from stream.run(NAME, MAX_NAME)
        yield from stream.whitespace()
        call_id = ""
        if name and (yield from stream.accept("[CALL_ID]")):
            call_id = yield from stream.run(_ID, MAX_NAME)
        yield from stream.accept("[ARGS]")
        yield from stream.whitespace()
        if name and (yield from stream.peek()) == "{":
            yield self.begin(name, call_id)
            yield from stream.json_value(JsonScanner(), self.arguments)
