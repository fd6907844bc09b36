"""Running output parsers in tests: results without ids, and the same text cut in many ways."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from octavo.server.output_parser import (
    Event,
    OutputParser,
    Reasoning,
    Text,
    ToolCallArguments,
    ToolCallStart,
    make_output_parser,
)

Plain = tuple[Any, ...]  # ("text", ...) | ("reasoning", ...) | ("call", name, arguments)

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "detail": {"type": "object"},
                "tags": {"type": "array"},
                "exact": {"type": "boolean"},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            },
        },
    },
}
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
TOOLS = [WEATHER, NOW]


def plain(events: Iterable[Event]) -> list[Plain]:
    """Events joined and without ids; checks indices and ids on the way."""
    out: list[list[Any]] = []
    ids = set()
    for event in events:
        if isinstance(event, ToolCallStart):
            assert event.index == len(ids) and event.id and event.id not in ids
            ids.add(event.id)
            out.append(["call", event.name, ""])
        elif isinstance(event, ToolCallArguments):
            assert out and out[-1][0] == "call" and event.index == len(ids) - 1, "fragments follow their call's start"
            out[-1][2] += event.json_fragment
        else:
            kind = "text" if isinstance(event, Text) else "reasoning"
            assert isinstance(event, Text | Reasoning) and event.text
            if out and out[-1][0] == kind:
                out[-1][1] += event.text
            else:
                out.append([kind, event.text])
    return [tuple(entry) for entry in out]


class Setup:
    """Which parsers a test runs."""

    def __init__(
        self,
        tool: str | None = None,
        reasoning: str | None = None,
        tools: Sequence[dict[str, Any]] = TOOLS,
        inside: bool = False,
    ) -> None:
        self.tool, self.reasoning, self.tools, self.inside = tool, reasoning, list(tools), inside

    def parser(self) -> OutputParser:
        return make_output_parser(self.tool, self.reasoning, None, self.tools, self.inside)

    def run(self, pieces: Iterable[str]) -> list[Plain]:
        parser = self.parser()
        events: list[Event] = []
        for piece in pieces:
            events += parser.push(piece, ())
        return plain(events + parser.finish())

    def check(self, text: str, num_random: int = 8, seed: int = 0, every_cut: bool = True) -> list[Plain]:
        """The result for the whole text, after seeing that it is the same however the text is cut."""
        whole = self.run([text])
        assert self.run(text) == whole, "one character at a time"
        cuts = range(1, len(text)) if every_cut else range(0)
        for cut in cuts:
            assert self.run((text[:cut], text[cut:])) == whole, f"cut after {text[:cut]!r}"
        chance = random.Random(seed)
        for _ in range(num_random):
            places = sorted(chance.sample(range(len(text) + 1), min(len(text) + 1, chance.randint(1, 12))))
            pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
            assert self.run(pieces) == whole, pieces
        return whole
