"""Hermes, Qwen 2.5, Qwen 3, Granite 4: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, one tag a call."""

from __future__ import annotations

from typing import ClassVar

from octavo.server.json_stream import dump
from octavo.server.text_stream import Steps
from octavo.server.tool_parsers.json_calls import JsonCalls


class HermesCalls(JsonCalls):
    openings: ClassVar[tuple[str, ...]] = ("<tool_call>",)
    markers = openings
    closings = ("</tool_call>",)

    @classmethod
    def frame(cls, name: str) -> tuple[str, str, str]:
        """What announces a call, what stands before its arguments, and what after: for strict tools."""
        return "<tool_call>", f'<tool_call>\n{{"name": {dump(name)}, "arguments": ', "}\n</tool_call>"

    def read_call(self, opening: str) -> Steps[None]:
        if (yield from self.objects()):
            yield from self.close()
