"""Thoughts between two tags at the start of the output, then the answer: what a reasoning format is, and the loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

from octavo.server.output_events import Event, Reasoning, Text
from octavo.server.text_stream import Machine, Steps


class ReasoningParser(Protocol):
    """Separates thoughts from the rest for one completion; the rest comes out as Text, tool calls and all.

    As with tool parsers, how the text is cut makes no difference, and nothing that a model writes may raise.
    """

    markers: ClassVar[tuple[str, ...]]  # texts that may be special tokens; if one is, decoding must keep those

    def __init__(self, starts_inside: bool, has_tools: bool) -> None:
        """`starts_inside`: the prompt opened the thoughts. `has_tools`: calls will be looked for in the rest."""

    @classmethod
    def prompt_ends_inside(cls, prompt: str) -> bool: ...

    def push(self, text: str) -> list[Event]: ...

    def finish(self) -> list[Event]: ...


class TaggedReasoning(Machine):
    """Thoughts begin with a tag, or in the prompt, and end with a tag or with the text.

    White space around the tags belongs to them. A tag further on, in the answer, is text.
    """

    tags: ClassVar[Mapping[str, tuple[str, ...]]] = {"<think>": ("</think>",)}  # how they begin: how they end
    calls: ClassVar[tuple[str, ...]] = ()  # beginnings of a tool call, that end thoughts without a tag
    markers: ClassVar[tuple[str, ...]] = ("<think>", "</think>")

    def __init__(self, starts_inside: bool, has_tools: bool) -> None:
        super().__init__()
        self._starts_inside = starts_inside
        self._interruptions = self.calls if has_tools else ()

    @classmethod
    def prompt_ends_inside(cls, prompt: str) -> bool:
        return prompt.rstrip().endswith(tuple(cls.tags))

    def run(self) -> Steps[None]:
        stream = self.stream
        white = yield from stream.whitespace()
        tag = yield from stream.accept_any(tuple(self.tags))
        if not tag and not self._starts_inside:
            if white:
                yield Text(white)
            yield from stream.copy_rest(Text)
            return
        ends = self.tags[tag or next(iter(self.tags))]
        _, marker = yield from stream.copy_until(ends + self._interruptions, Reasoning, after_markup=True)
        if marker in self._interruptions:
            yield Text(marker)
        else:
            yield from stream.whitespace()
        yield from self.answer(marker)

    def answer(self, end: str) -> Steps[None]:
        """What follows thoughts that ended with `end`."""
        yield from self.stream.copy_rest(Text)
