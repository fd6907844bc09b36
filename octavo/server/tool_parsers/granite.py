"""Granite 3: `<|tool_call|>[{"name": ..., "arguments": {...}}, ...]`; 3.1 and later may write `<tool_call>`."""

from __future__ import annotations

from octavo.server.tool_parsers.hermes import HermesCalls


class GraniteCalls(HermesCalls):
    openings = ("<|tool_call|>", "<tool_call>")
    markers = openings
