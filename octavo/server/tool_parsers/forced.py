"""Calls that a request had the model make: its text is nothing but JSON, held to by a grammar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.server.json_stream import JsonScanner
from octavo.server.output_events import Text
from octavo.server.text_stream import Steps
from octavo.server.tool_parsers.json_calls import JsonCalls


class ForcedCalls(JsonCalls):
    """With a `name` the text is that tool's arguments, else a list of calls: [{"name": ..., "parameters": {...}}]."""

    def __init__(self, tools: Sequence[Mapping[str, Any]], name: str | None) -> None:
        super().__init__(tools)
        self._name = name

    def run(self) -> Steps[None]:
        yield from self.stream.whitespace()
        if self._name is None:
            self.stream.record()
            yield from self.objects()
            if text := self.stream.take_record():  # broken off before it was a call
                yield Text(text)
        elif (yield from self.stream.peek()):
            yield self.begin(self._name)
            yield from self.stream.json_value(JsonScanner(), self.arguments)
        yield from self.stream.copy_rest(Text)
