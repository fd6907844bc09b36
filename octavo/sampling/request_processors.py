"""Logits processors of single requests: callables of the user's, or of what the operator has registered by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from octavo.core.params import ProcessorCall, SamplingParams
from octavo.errors import InvalidRequest
from octavo.sampling.processors import load

FIELD = "logits_processors"


@dataclass(frozen=True, slots=True)
class RequestProcessor:
    """A user's callable: (output ids, logits [V]) -> logits [V], or with the prompt's ids before these."""

    name: str
    function: Callable[..., Any]
    takes_prompt: bool

    def __call__(self, prompt_token_ids: list[int], output_token_ids: list[int], logits_V: Any) -> Any:
        if self.takes_prompt:
            return self.function(prompt_token_ids, output_token_ids, logits_V)
        return self.function(output_token_ids, logits_V)


@dataclass(slots=True, eq=False)
class RowTokens:
    """What processors may know of a row. `output_token_ids` is one list for as long as the row lives, and grows."""

    params: SamplingParams
    prompt_token_ids: list[int]
    output_token_ids: list[int]
    processors: list[RequestProcessor] = field(default_factory=list)  # the request's own
    is_refused: bool = False  # one of them has failed: none of them runs any more


class RequestProcessors:
    """What requests may ask for by name. Raises ConfigurationError."""

    def __init__(self, paths: Mapping[str, str] | None = None) -> None:
        self._factories = {name: load(path, "request_logits_processors") for name, path in (paths or {}).items()}

    def bind(self, params: SamplingParams) -> SamplingParams:
        """With what is named made, once for all of the request's life. Raises InvalidRequest."""
        if params.logits_processors is None:
            return params
        bound = [
            self._make(processor, f"{FIELD}[{i}]") if isinstance(processor, ProcessorCall) else bind(processor, i)
            for i, processor in enumerate(params.logits_processors)
        ]
        return msgspec.structs.replace(params, logits_processors=bound)

    def _make(self, call: ProcessorCall, field_name: str) -> RequestProcessor:
        if call.name not in self._factories:
            known = ", ".join(self._factories) or "none"
            raise InvalidRequest(
                f"{field_name}: there is no logits processor {call.name!r}; registered are: {known} "
                "(request_logits_processors)",
                FIELD,
            )
        try:
            made = self._factories[call.name](**call.arguments)
        except Exception as error:
            shown = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
            raise InvalidRequest(
                f"{field_name}: {call.name} refuses its arguments ({shown[:200]}): {type(error).__name__}: {error}",
                FIELD,
            ) from error
        return bind(made, field_name, call.name)


def bind(processor: Any, place: int | str, name: str | None = None) -> RequestProcessor:
    """Raises InvalidRequest for what cannot be called with two or three arguments."""
    if isinstance(processor, RequestProcessor):
        return processor
    where = place if isinstance(place, str) else f"{FIELD}[{place}]"
    name = name or getattr(processor, "__qualname__", None) or type(processor).__qualname__
    if callable(processor):
        try:
            signature = inspect.signature(processor)
        except (TypeError, ValueError):  # compiled code may have none
            return RequestProcessor(name, processor, takes_prompt=False)
        for count in (2, 3):
            try:
                signature.bind(*[None] * count)
            except TypeError:
                continue
            return RequestProcessor(name, processor, takes_prompt=count == 3)
    raise InvalidRequest(
        f"{where}: {name} must be callable with (output_token_ids, logits) or (prompt_token_ids, output_token_ids, "
        "logits)",
        FIELD,
    )
