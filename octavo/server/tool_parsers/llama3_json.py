"""Llama 3.1 to 4: `{"name": ..., "parameters": {...}}` in plain text, several apart by `;`; `<|python_tag|>` may lead.

No marker tells a call from other JSON, so only objects that first name one of the request's tools are calls.
"""

from __future__ import annotations

from octavo.server.text_stream import Steps
from octavo.server.tool_parsers.json_calls import JsonCalls


class Llama3JsonCalls(JsonCalls):
    openings = ("{",)
    dropped = ("<|python_tag|>", "<|python_start|>", "<|python_end|>")
    strict = True

    def read_call(self, opening: str) -> Steps[None]:
        if (yield from self.object(is_open=True)):
            self.stream.record()
            yield from self.stream.whitespace()
            if (yield from self.stream.accept(";")):
                self.stream.commit()
