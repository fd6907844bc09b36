"""What the engine knows of one request, from arrival to its last token. Owned by the core's thread."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from octavo.core.outputs import TokenLogprobs
from octavo.core.params import RepetitionDetection, SamplingParams
from octavo.core.prompt_logprobs import PromptScores


class RequestStatus(enum.IntEnum):
    """Where a request is. Everything past PREEMPTED is finished."""

    WAITING = 0
    RUNNING = 1
    PREEMPTED = 2
    FINISHED_STOPPED = 3
    FINISHED_LENGTH = 4
    FINISHED_ABORTED = 5
    FINISHED_ERROR = 6
    FINISHED_REPETITION = 7

    @property
    def is_finished(self) -> bool:
        return self > RequestStatus.PREEMPTED


class FinishReason(enum.IntEnum):
    """Why a request ended; the integers are the wire form (vLLM's)."""

    STOP = 0
    LENGTH = 1
    ABORT = 2
    ERROR = 3
    REPETITION = 4

    def __str__(self) -> str:
        return self.name.lower()


FINISH_REASONS = {
    RequestStatus.FINISHED_STOPPED: FinishReason.STOP,
    RequestStatus.FINISHED_LENGTH: FinishReason.LENGTH,
    RequestStatus.FINISHED_ABORTED: FinishReason.ABORT,
    RequestStatus.FINISHED_ERROR: FinishReason.ERROR,
    RequestStatus.FINISHED_REPETITION: FinishReason.REPETITION,
}


@dataclass(slots=True, eq=False)
class Request:
    """One generation job.

    Token counts, in order:  num_computed_tokens <= num_expected_tokens

        | prompt ................ | sampled, known | sampled, in flight |
        0                  num_prompt         num_tokens         num_expected

    `num_computed_tokens` is optimistic: it is advanced when a step is planned, not when it has run. Tokens in flight
    are those that planned steps will sample and whose ids the host does not know yet. `epoch` changes whenever the
    request starts over or ends: results of steps planned under another epoch are dropped.
    """

    request_id: str
    token_ids: list[int]  # prompt, then every sampled token the host knows
    params: SamplingParams
    arrival_time: float
    priority: int = 0
    seed: int = 0  # of its random numbers; every preemption and batch draws the same ones
    max_total_tokens: int = 0  # prompt and output together, never beyond the model's length
    stop_token_ids: frozenset[int] = frozenset()  # that stop with stop_reason
    eos_token_ids: frozenset[int] = frozenset()  # that stop without; empty under ignore_eos
    detection: RepetitionDetection | None = None  # of outputs that repeat themselves
    cache_keys: tuple[object, ...] = ()  # salt, adapter, media: enter the hash of the first block
    num_prompt_tokens: int = 0
    num_computed_tokens: int = 0
    num_expected_tokens: int = 0
    num_cached_tokens: int = -1  # prompt tokens taken from the cache at first admission; -1: not admitted yet
    num_preemptions: int = 0
    queued_time: float = 0.0  # `time.monotonic` of the core; 0: not yet
    scheduled_time: float = 0.0
    first_token_time: float = 0.0
    epoch: int = 0
    streams: bool = True  # False: the front end wants nothing before the end
    status: RequestStatus = RequestStatus.WAITING
    skip_cache_reads: bool = False
    scores: PromptScores | None = None  # log-probabilities of the prompt, where they are wanted
    stop_reason: int | str | None = None
    error: str | None = None
    block_hashes: list[bytes] = field(default_factory=list)  # of full blocks of known tokens
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # of output tokens, until they are handed out

    def __post_init__(self) -> None:
        self.num_prompt_tokens = self.num_expected_tokens = len(self.token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed(self) -> int:
        """Tokens that could be planned now."""
        return self.num_expected_tokens - self.num_computed_tokens

    @property
    def order(self) -> tuple[int, float, str]:
        """Lower is served first, under the priority policy."""
        return (self.priority, self.arrival_time, self.request_id)
