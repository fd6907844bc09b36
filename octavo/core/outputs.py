"""What a user receives. The names are vLLM's, so that programs port by changing the import."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import overload

import msgspec


class TokenLogprobs(msgspec.Struct, array_like=True, frozen=True):
    """Log-probabilities at one sampled position: the sampled token first, then the top N, best first, then those of
    `logprob_token_ids`. Ranks from 1. Logits, where `logprobs_mode` says so; minus infinity is possible."""

    token_ids: list[int]
    logprobs: list[float]
    ranks: list[int]


@dataclass(slots=True)
class Logprob:
    """One token's log-probability (natural logarithm), its rank (1 is the most likely) and its text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


PositionLogprobs = dict[int, Logprob]


class FlatLogprobs(Sequence[PositionLogprobs]):
    """Positions as six lists, whatever their number: nothing for a garbage collector to walk. Reads as a sequence of
    dictionaries, which are made when they are asked for. Position i has the entries start_indices[i] : end_indices[i].
    """

    __slots__ = ("decoded_tokens", "end_indices", "logprobs", "ranks", "start_indices", "token_ids")

    def __init__(self) -> None:
        self.start_indices: list[int] = []
        self.end_indices: list[int] = []
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.ranks: list[int | None] = []
        self.decoded_tokens: list[str | None] = []

    def append_fast(
        self, token_ids: Iterable[int], logprobs: Iterable[float], ranks: Iterable[int | None],
        decoded_tokens: Iterable[str | None],
    ) -> None:  # fmt: skip
        """One position; equally many of each."""
        self.start_indices.append(len(self.token_ids))
        self.token_ids += token_ids
        self.logprobs += logprobs
        self.ranks += ranks
        self.decoded_tokens += decoded_tokens
        self.end_indices.append(len(self.token_ids))

    def append(self, position: PositionLogprobs | None) -> None:
        entries = position or {}
        self.append_fast(
            entries,
            [entry.logprob for entry in entries.values()],
            [entry.rank for entry in entries.values()],
            [entry.decoded_token for entry in entries.values()],
        )

    def __len__(self) -> int:
        return len(self.start_indices)

    @overload
    def __getitem__(self, index: int) -> PositionLogprobs: ...
    @overload
    def __getitem__(self, index: slice) -> FlatLogprobs: ...
    def __getitem__(self, index: int | slice) -> PositionLogprobs | FlatLogprobs:
        if isinstance(index, slice):
            part = FlatLogprobs()
            for i in range(*index.indices(len(self))):
                part.append(self[i])
            return part
        start, end = self.start_indices[index], self.end_indices[index]
        return {
            self.token_ids[i]: Logprob(self.logprobs[i], self.ranks[i], self.decoded_tokens[i])
            for i in range(start, end)
        }


@dataclass(slots=True)
class CompletionOutput:
    """One completion of a prompt. With `output_kind` DELTA, `text` and `token_ids` hold what is new."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[PositionLogprobs] | FlatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestMetrics:
    """Times in seconds (`time.monotonic`)."""

    arrival_time: float = 0.0
    first_token_time: float | None = None
    last_token_time: float | None = None


@dataclass(slots=True)
class RequestOutput:
    """All completions of one prompt."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    prompt_logprobs: list[PositionLogprobs | None] | FlatLogprobs | None = None  # by token; nothing for the first
    prompt_token_id_logprobs: list[list[float]] | None = None  # by scored position and prompt_logprob_token_ids
    error: str | None = None  # set where a completion's finish_reason is "error"


@dataclass(slots=True)
class BeamSearchSequence:
    """One result of `LLM.beam_search`. `tokens` and `text` begin with the prompt, as vLLM's do."""

    tokens: list[int]
    cum_logprob: float
    text: str | None = None
    logprobs: list[PositionLogprobs] | FlatLogprobs | None = None  # of what is new
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class BeamSearchOutput:
    """Of one prompt, best first."""

    sequences: list[BeamSearchSequence]
