"""What the front end and the core tell each other. msgspec structs, so that a process border can be put between."""

from __future__ import annotations

import msgspec

from octavo.core.outputs import TokenLogprobs
from octavo.core.params import SamplingParams


class Submit(msgspec.Struct, array_like=True, frozen=True):
    """A request for the core. `request_id` is unique among the live ones."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    arrival_time: float
    priority: int = 0
    cache_salt: str | None = None
    eos_token_ids: list[int] = []
    seed: int | None = None  # None: drawn by the core


class Abort(msgspec.Struct, array_like=True, frozen=True):
    request_ids: list[str]


class Timing(msgspec.Struct, array_like=True, frozen=True):
    """When a request reached its stages, on the core's clock (`time.monotonic`, seconds). 0 where it never did."""

    queued: float = 0.0  # the core took it
    scheduled: float = 0.0  # first part of a step
    first_token: float = 0.0
    last_token: float = 0.0
    num_preemptions: int = 0


class Delta(msgspec.Struct, array_like=True, frozen=True):
    """What one step brought one request. A request that wants only its final result gets one, with everything in it."""

    request_id: str
    token_ids: list[int]
    finish_reason: int | None = None  # octavo.core.request.FinishReason
    stop_reason: int | str | None = None
    error: str | None = None
    logprobs: list[TokenLogprobs] | None = None  # parallel to token_ids
    num_cached_tokens: int = 0
    timing: Timing | None = None  # with a request's first token and with its end


class StepShare(msgspec.Struct, array_like=True, frozen=True):
    """What one request got of one step."""

    request_id: str
    num_tokens: int  # computed
    num_cached_tokens: int  # found in the prefix cache, and so not computed
    is_prefill: bool


class StepStats(msgspec.Struct, array_like=True, frozen=True):
    """Counters of one step, for logs, metrics and benchmarks. Times in seconds."""

    num_running: int = 0
    num_waiting: int = 0
    num_scheduled_tokens: int = 0
    num_prefill_tokens: int = 0
    num_cached_tokens: int = 0  # taken from the prefix cache in this step
    num_preempted: int = 0
    cache_usage: float = 0.0  # share of blocks that are referenced
    schedule_seconds: float = 0.0
    update_seconds: float = 0.0
    step_seconds: float = 0.0  # the whole round, waiting for the device included
    num_deferred: int = 0  # of the waiting: held back by something else than room
    num_prompt_tokens: int = 0  # prompts that got their first token in this step: their tokens,
    num_prompt_tokens_cached: int = 0  # and those of them that were found in the prefix cache
    num_generated_tokens: int = 0
    num_prefix_queries: int = 0  # tokens of the prompts that were looked up in the prefix cache in this step,
    num_prefix_hits: int = 0  # and those that were found
    num_corrupted: int = 0  # requests that ended because their results were not finite
    num_steps: int = 1  # that these counters sum up; 0: ends that no step brought
    shares: list[StepShare] | None = None  # while somebody watches


class StepOutputs(msgspec.Struct, array_like=True, frozen=True):
    deltas: list[Delta] = []
    stats: StepStats | None = None
