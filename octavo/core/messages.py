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


class Delta(msgspec.Struct, array_like=True, frozen=True):
    """What one step brought one request. A request that wants only its final result gets one, with everything in it."""

    request_id: str
    token_ids: list[int]
    finish_reason: int | None = None  # octavo.core.request.FinishReason
    stop_reason: int | str | None = None
    error: str | None = None
    logprobs: list[TokenLogprobs] | None = None  # parallel to token_ids
    num_cached_tokens: int = 0


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


class StepOutputs(msgspec.Struct, array_like=True, frozen=True):
    deltas: list[Delta] = []
    stats: StepStats | None = None
