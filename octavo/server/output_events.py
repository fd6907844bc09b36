"""What a model's text turns out to be. Parsers make these, endpoints write them out in their own shapes."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Text(msgspec.Struct, frozen=True, gc=False):
    """A piece of the answer."""

    text: str


class Reasoning(msgspec.Struct, frozen=True, gc=False):
    """A piece of the thoughts before the answer."""

    text: str


class ToolCallStart(msgspec.Struct, frozen=True, gc=False):
    """A call begins; its arguments follow under the same index. Indices count from 0."""

    index: int
    id: str
    name: str


class ToolCallArguments(msgspec.Struct, frozen=True, gc=False):
    """A fragment of one call's arguments. All of a call's fragments, joined, are the JSON text of an object."""

    index: int
    json_fragment: str


Event = Text | Reasoning | ToolCallStart | ToolCallArguments


def merge(events: Iterable[Event]) -> list[Event]:
    """The same events with neighbours of one kind joined and empty ones left out."""
    merged: list[Event] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, ToolCallArguments):
            if not event.json_fragment:
                continue
            if isinstance(last, ToolCallArguments) and last.index == event.index:
                merged[-1] = ToolCallArguments(event.index, last.json_fragment + event.json_fragment)
                continue
        elif isinstance(event, Text | Reasoning):
            if not event.text:
                continue
            if isinstance(last, Text) and isinstance(event, Text):
                merged[-1] = Text(last.text + event.text)
                continue
            if isinstance(last, Reasoning) and isinstance(event, Reasoning):
                merged[-1] = Reasoning(last.text + event.text)
                continue
        merged.append(event)
    return merged
