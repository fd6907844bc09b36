"""Model text to thoughts, answer and tool calls, for endpoints: thoughts come first, calls are found in what is left.

Streaming pushes pieces, anything else pushes the whole text; both finish. It is one state machine, so the two can
not differ.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from octavo.core.structured import Thinking
from octavo.server.output_events import Event, Reasoning, Text, ToolCallArguments, ToolCallStart, merge
from octavo.server.parser_detection import detect_parsers
from octavo.server.reasoning_parsers import REASONING_PARSERS
from octavo.server.tool_parsers import TOOL_PARSERS
from octavo.server.tool_parsers.forced import ForcedCalls

__all__ = [
    "Event",
    "OutputParser",
    "Reasoning",
    "Text",
    "ToolCallArguments",
    "ToolCallStart",
    "detect_parsers",
    "make_output_parser",
    "prompt_ends_in_reasoning",
    "thinking_of",
]


class Vocabulary(Protocol):
    """What is asked of a tokenizer here."""

    @property
    def special_ids(self) -> Collection[int]: ...

    def convert_token_to_id(self, token: str) -> int | None: ...


class Forced(Protocol):
    """Calls that the request has the model make: of this tool, or of any."""

    @property
    def name(self) -> str | None: ...


class Stage(Protocol):
    """A tool parser or a reasoning parser at work."""

    def push(self, text: str) -> list[Event]: ...

    def finish(self) -> list[Event]: ...


class OutputParser:
    """One completion's parsers in a row: each looks into the Text that the one before it leaves.

    `needs_special_tokens`: the parsers' markers are special tokens of this vocabulary, so the request must be decoded
    with skip_special_tokens=False.
    """

    def __init__(self, stages: Sequence[Stage], needs_special_tokens: bool) -> None:
        self.stages = stages
        self.needs_special_tokens = needs_special_tokens

    def push(self, text: str, token_ids: Sequence[int] = ()) -> list[Event]:
        """The events that `text` completes. `token_ids` are the tokens it came from; no format needs them so far."""
        return merge(self._pass_on(0, [Text(text)]))

    def finish(self) -> list[Event]:
        """The events that were kept back. No more calls after it."""
        events: list[Event] = []
        for position, stage in enumerate(self.stages):
            events += self._pass_on(position + 1, stage.finish())
        return merge(events)

    def _pass_on(self, position: int, events: Sequence[Event]) -> list[Event]:
        for stage in self.stages[position:]:
            passed: list[Event] = []
            for event in events:
                passed += stage.push(event.text) if isinstance(event, Text) else (event,)
            events = passed
        return list(events)


def make_output_parser(
    tool: str | None,
    reasoning: str | None,
    tokenizer: Vocabulary | None,
    tools: Sequence[Mapping[str, Any]] | None,
    prompt_ends_in_reasoning: bool,
    forced: Forced | None = None,
) -> OutputParser:
    """A parser for one completion. `tool` and `reasoning` are registered names or "module:Class"; None is none.

    Calls are looked for only if there are `tools`, in OpenAI's shape; with `forced`, all but thoughts is calls. Raises
    ConfigurationError for unknown names.
    """
    if forced is not None:
        thoughts = make_output_parser(None, reasoning, tokenizer, None, prompt_ends_in_reasoning)
        return OutputParser([*thoughts.stages, ForcedCalls(tools or (), forced.name)], thoughts.needs_special_tokens)
    tool_class = None if tool is None else TOOL_PARSERS.find(tool)
    reasoning_class = None if reasoning is None else REASONING_PARSERS.find(reasoning)
    given = list(tools or ()) if tool is not None else []
    for parser in (tool_class, reasoning_class):
        if parser is not None and getattr(parser, "reads_everything", False):
            return OutputParser([parser(given, prompt_ends_in_reasoning)], _has_special((parser,), tokenizer))
    stages: list[Stage] = []
    used: list[type[Any]] = []
    if reasoning_class is not None:
        stages.append(reasoning_class(prompt_ends_in_reasoning, bool(given)))
        used.append(reasoning_class)
    if tool_class is not None and given:
        stages.append(tool_class(given))
        used.append(tool_class)
    return OutputParser(stages, _has_special(used, tokenizer))


def prompt_ends_in_reasoning(reasoning: str | None, rendered_prompt: str) -> bool:
    """Whether the model goes on with thoughts that this prompt opened."""
    return reasoning is not None and bool(REASONING_PARSERS.find(reasoning).prompt_ends_inside(rendered_prompt))


def thinking_of(reasoning: str | None, prompt_ends_inside: bool) -> Thinking | None:
    """How a format's thoughts begin and end, for what may come only after them."""
    if reasoning is None:
        return None
    parser = REASONING_PARSERS.find(reasoning)
    tags = getattr(parser, "thinking", None) or getattr(parser, "tags", None)
    if not tags:
        return None
    starts_inside = prompt_ends_inside or getattr(parser, "always_thinks", False)
    return Thinking({begin: list(ends) for begin, ends in tags.items()}, starts_inside)


def _has_special(parsers: Sequence[type[Any]], tokenizer: Vocabulary | None) -> bool:
    """Whether a marker is a special token; without a tokenizer, whether there are markers at all."""
    markers = [marker for parser in parsers for marker in parser.markers]
    if tokenizer is None:
        return bool(markers)
    return any(tokenizer.convert_token_to_id(marker) in tokenizer.special_ids for marker in markers)
