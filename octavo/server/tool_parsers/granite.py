"""Granite 3: `<|tool_call|>[{"name": ..., "arguments": {...}}, ...]`; 3.1 and later may write `<tool_call>`."""

from __future__ import annotations

from octavo.server.json_stream import dump
from octavo.server.tool_parsers.hermes import HermesCalls


class GraniteCalls(HermesCalls):
    openings = ("<|tool_call|>", "<tool_call>")
    markers = openings

    @classmethod
    def frame(cls, name: str) -> tuple[str, str, str]:
        return "<|tool_call|>", f'<|tool_call|>[{{"name": {dump(name)}, "arguments": ', "}]"
