"""Tokens that must come next: those of a trace that is replayed, and the end of thoughts that have used up their
budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from octavo.core.hooks import Refusal
from octavo.core.request import Request
from octavo.core.step import StepPlan, TokenMasks
from octavo.core.structured import Thinking
from octavo.errors import InvalidRequest
from octavo.structured.follower import Follower
from octavo.structured.grammar import Matcher
from octavo.structured.vocabulary import Vocabulary


class _Anything:
    """A grammar of all texts, and its matcher: whoever follows it learns only where thoughts begin and end."""

    def matcher(self) -> Matcher:
        return self

    def fill(self, bitmask: np.ndarray, row: int) -> None:
        bitmask[row] = -1

    def accept(self, token_ids: Sequence[int]) -> bool:
        return True

    def validate(self, token_ids: Sequence[int]) -> int:
        return len(token_ids)

    def rollback(self, num_tokens: int) -> None:
        pass


class Budget:
    """Counts the tokens of a request's thoughts; once there are `budget` of them, the first end tag is due."""

    def __init__(self, budget: int, thinking: Thinking, vocabulary: Vocabulary) -> None:
        self._budget = budget
        self._follower = Follower(_Anything(), vocabulary, thinking)
        self._end = vocabulary.encode(next(iter(thinking.tags.values()))[0].encode())
        self._num_thoughts = 0
        self._num_forced: int | None = None  # tokens of the end that were made, once it is due

    def next_token(self, request: Request) -> int | None:
        """None: any token may come."""
        for token_id in request.token_ids[request.num_prompt_tokens + self._follower.num_seen :]:
            was_thinking = self._follower.is_thinking
            self._follower.follow((token_id,))
            if self._num_forced is not None:
                self._num_forced += 1
            elif was_thinking:
                self._num_thoughts += 1
        if not self._follower.is_thinking:
            self._num_forced = None
            return None
        if self._num_forced is None and self._num_thoughts >= self._budget:
            self._num_forced = 0
        if self._num_forced is None:
            return None
        return self._end[min(self._num_forced, len(self._end) - 1)]


class Trace:
    """The output that a request is to have."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids = token_ids

    def next_token(self, request: Request) -> int | None:
        place = request.num_output_tokens
        return self._token_ids[place] if place < len(self._token_ids) else None


@dataclass(slots=True)
class _Live:
    request: Request
    source: Budget | Trace


class ForcedTokens:
    """A constraint. A trace goes before a budget. `open_vocabulary` raises InvalidRequest where there is none."""

    def __init__(self, open_vocabulary: Callable[[], Vocabulary], vocab_size: int) -> None:
        self._open_vocabulary = open_vocabulary
        self._vocabulary: Vocabulary | None = None
        self._num_words = -(-vocab_size // 32)
        self._live: dict[str, _Live] = {}

    def __bool__(self) -> bool:
        return bool(self._live)

    def add(self, request: Request) -> None:
        params = request.params
        if params.trace_decode_token_ids is not None:
            self._live[request.request_id] = _Live(request, Trace(params.trace_decode_token_ids))
        elif params.thinking_token_budget is not None:
            if params.thinking is None or not params.thinking.tags:
                raise InvalidRequest("thinking_token_budget needs thinking: how thoughts begin and end", "thinking")
            if self._vocabulary is None:
                self._vocabulary = self._open_vocabulary()
            source = Budget(params.thinking_token_budget, params.thinking, self._vocabulary)
            self._live[request.request_id] = _Live(request, source)

    def masks(self, plan: StepPlan) -> TokenMasks | None:
        places, forced = [], []
        for place, request_id in enumerate(plan.sampled):
            entry = self._live.get(request_id)
            if entry is not None:
                token_id = entry.source.next_token(entry.request)
                if token_id is not None:
                    places.append(place)
                    forced.append(token_id)
        if not places:
            return None
        bits = np.zeros((len(places), self._num_words), dtype=np.uint32)
        for row, token_id in enumerate(forced):
            bits[row, token_id // 32] = 1 << (token_id % 32)
        return TokenMasks(places, bits.view(np.int32))

    def refusals(self) -> list[Refusal]:
        for request_id in [name for name, entry in self._live.items() if entry.request.status.is_finished]:
            del self._live[request_id]
        return []

    def wait(self, seconds: float) -> None:
        pass

    def shutdown(self) -> None:
        self._live.clear()
