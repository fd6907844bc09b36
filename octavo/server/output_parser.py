"""What a model's output means: text, reasoning and tool calls, from one state machine for streams and whole texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from octavo.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    index: int
    json_fragment: str


Event = Text | Reasoning | ToolCallStart | ToolCallArguments


class OutputParser(Protocol):
    def push(self, text: str, token_ids: Sequence[int]) -> list[Event]: ...

    def finish(self) -> list[Event]: ...


class _Plain:
    def push(self, text: str, token_ids: Sequence[int]) -> list[Event]:
        return [Text(text)] if text else []

    def finish(self) -> list[Event]:
        return []


def make_output_parser(
    tool: str | None,
    reasoning: str | None,
    tokenizer: Tokenizer,
    tools: list[dict[str, Any]] | None,
    prompt_ends_in_reasoning: bool,
) -> OutputParser:
    if tool or reasoning:
        raise ValueError("no parsers yet")
    return _Plain()


def detect_parsers(chat_template: str | None, tokenizer: Tokenizer, model_name: str) -> tuple[str | None, str | None]:
    return None, None
