"""One completion as its reader understands it: content, reasoning, tool calls. Streams and whole texts go through the
same object, so the two cannot differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from octavo.core.outputs import CompletionOutput, RequestOutput
from octavo.server.output_parser import Event, OutputParser, Reasoning, Text, ToolCallArguments, ToolCallStart
from octavo.server.prompts import PreparedPrompt
from octavo.server.state import ServedModel
from octavo.server.structured import ForcedTools


@dataclass
class Call:
    id: str
    name: str
    arguments: str = ""  # JSON


class Answer:
    """Grows with `take`. `keep_reasoning` and `parallel_calls` False leave that out of everything. `on_end` is told
    whether there were calls."""

    def __init__(
        self,
        parser: OutputParser | None,
        *,
        keep_reasoning: bool = True,
        parallel_calls: bool = True,
        on_end: Callable[[bool], None] | None = None,
    ) -> None:
        self._parser, self._keep_reasoning, self._parallel_calls = parser, keep_reasoning, parallel_calls
        self._on_end = on_end
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self.calls: dict[int, Call] = {}
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        """Also what is left out of the events."""
        return "".join(self._reasoning)

    def take(self, output: CompletionOutput) -> list[Event]:
        """What is new in it. Ends with `finish_reason` set."""
        self.num_tokens += len(output.token_ids)
        if self._parser is None:
            events: list[Event] = [Text(output.text)] if output.text else []
        else:
            events = list(self._parser.push(output.text, output.token_ids))
            if output.finish_reason is not None:
                events += self._parser.finish()
        events = [event for event in events if self._note(event)]
        if output.finish_reason is not None:
            is_call = bool(self.calls) and output.finish_reason == "stop"
            self.finish_reason = "tool_calls" if is_call else output.finish_reason
            self.stop_reason = output.stop_reason
            if self._on_end is not None:
                self._on_end(bool(self.calls))
        return events

    def _note(self, event: Event) -> bool:
        """Adds it to what is known. False: nobody shall see it."""
        match event:
            case Text(text):
                self._content.append(text)
                return bool(text)
            case Reasoning(text):
                self._reasoning.append(text)
                return bool(text) and self._keep_reasoning
            case ToolCallStart(index, call_id, name):
                if index > 0 and not self._parallel_calls:
                    return False
                self.calls[index] = Call(call_id, name)
            case ToolCallArguments(index, fragment):
                if index not in self.calls:
                    return False
                self.calls[index].arguments += fragment
                return bool(fragment)
        return True

    def as_message(self) -> dict[str, Any]:
        """For the next prompt of a conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self._reasoning:
            message["reasoning"] = message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.calls.values()
            ]
        return message

    def num_reasoning_tokens(self, served: ServedModel) -> int:
        return len(served.engine.inputs.encode(self.reasoning, False)) if self._reasoning else 0


def new_answer(
    served: ServedModel,
    tools: list[dict[str, Any]] | None,
    prompt: PreparedPrompt,
    streaming: bool,
    api: str,
    forced: ForcedTools | None = None,
    **keep: bool,
) -> Answer:
    """An answer to `prompt` by one of the APIs, counted if it is searched for calls of `tools`. `keep`: see Answer."""
    recorder = served.engine.recorder
    on_end = None
    if tools and served.tool_parser is not None and recorder is not None:
        on_end = partial(recorder.tool_call_parser, streaming, api)
    return Answer(served.new_parser(tools, prompt.ends_in_reasoning, forced), on_end=on_end, **keep)


@dataclass
class TokenCounts:
    """What a request used."""

    num_prompt: int = 0
    num_cached: int = 0
    num_completion: int = 0
    num_reasoning: int = 0

    def note(self, output: RequestOutput) -> None:
        self.num_cached = max(self.num_cached, output.num_cached_tokens)
        self.num_completion += sum(len(completion.token_ids) for completion in output.outputs)

    def openai(self, with_cached: bool) -> dict[str, Any]:
        usage: dict[str, Any] = {
            "prompt_tokens": self.num_prompt,
            "total_tokens": self.num_prompt + self.num_completion,
            "completion_tokens": self.num_completion,
        }
        if with_cached:
            usage["prompt_tokens_details"] = {"cached_tokens": self.num_cached}
        if self.num_reasoning:
            # counted in the text, which may have more tokens than it came from
            reasoning = min(self.num_reasoning, self.num_completion)
            usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
        return usage
