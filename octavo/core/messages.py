"""What the front end and the core tell each other. msgspec structs, so that a process border can be put between.

Those of the last two sections exist only where there is such a border; `wire.py` makes bytes of them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from octavo.core.outputs import TokenLogprobs
from octavo.core.params import SamplingParams
from octavo.core.prompt_logprobs import PromptRows


class Submit(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """A request for the core. `request_id` is unique among the live ones."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    arrival_time: float
    priority: int = 0
    cache_salt: str | None = None
    eos_token_ids: list[int] = []
    seed: int | None = None  # None: drawn by the core


class Abort(msgspec.Struct, array_like=True, frozen=True, tag=True):
    request_ids: list[str]


class Timing(msgspec.Struct, array_like=True, frozen=True):
    """When a request reached its stages, on the core's clock (`time.monotonic`, seconds). 0 where it never did."""

    queued: float = 0.0  # the core took it
    scheduled: float = 0.0  # first part of a step
    first_token: float = 0.0
    last_token: float = 0.0
    num_preemptions: int = 0


class Beam(msgspec.Struct, array_like=True, frozen=True):
    """One result of a beam search."""

    token_ids: list[int]
    cumulative_logprob: float
    finish_reason: int
    stop_reason: int | None = None
    logprobs: list[TokenLogprobs] | None = None  # parallel to token_ids


class Delta(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What one step brought one request. A request that wants only its final result gets one, with everything in it.
    Streaming rows make one each a step, so the garbage collector is spared them: nothing in one refers back to it."""

    request_id: str
    token_ids: list[int]
    finish_reason: int | None = None  # octavo.core.request.FinishReason
    stop_reason: int | str | None = None
    error: str | None = None
    logprobs: list[TokenLogprobs] | None = None  # parallel to token_ids
    num_cached_tokens: int = 0
    error_type: str | None = None  # of octavo.errors; None: the request failed while it ran
    error_field: str | None = None
    timing: Timing | None = None  # with a request's first token and with its end
    beams: list[Beam] | None = None  # the end of a beam search: best first, in place of tokens
    prompt_rows: PromptRows | None = None  # the prompt's log-probabilities: with the first token, or the only delta


class StepShare(msgspec.Struct, array_like=True, frozen=True):
    """What one request got of one step."""

    request_id: str
    num_tokens: int  # computed
    num_cached_tokens: int  # found in the prefix cache, and so not computed
    is_prefill: bool


class BlockLife(msgspec.Struct, array_like=True, frozen=True):
    """A cached block from when it was taken to when its content gave way to something else. Seconds."""

    lifetime: float
    idle: float  # since it was taken, or last found in the cache
    reuse_gaps: list[float]  # from one time that it was found to the next, of the last few


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
    block_lives: list[BlockLife] | None = None  # that have ended, of the blocks in the sample


class StepOutputs(msgspec.Struct, array_like=True, frozen=True, tag=True):
    deltas: list[Delta] = []
    stats: StepStats | None = None
    started: list[str] = []  # requests that left the queue: they have part in this step or in one that is under way


# ---- between a front end's process and the core's


class Hello(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """The first message of a front end. `token` shows that it was started by whoever started the core."""

    frontend: int
    pid: int
    token: bytes


class Goodbye(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """The last message of a front end: whatever it still has running is aborted."""


class Query(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """Answered between two steps by a `Reply` of the same id."""

    query_id: int
    name: Literal["ping", "stats", "reset_prefix_cache", "watch"]
    seconds: float = 0.0  # of "watch"


class CoreStats(msgspec.Struct, array_like=True, frozen=True):
    """The core at this moment."""

    num_running: int
    num_waiting: int
    num_blocks: int  # if the first cache group had all of the memory
    num_used_blocks: int
    frontends: list[int] = []  # that are connected


class Reply(msgspec.Struct, array_like=True, frozen=True, tag=True):
    query_id: int
    value: bool | CoreStats


# ---- between the process that launches and those it launches, over each one's control channel


class CoreFacts(msgspec.Struct, array_like=True, frozen=True):
    """What is known only once the model is loaded."""

    max_total_tokens: int  # one request, prompt and output together: what the model and an empty cache can hold
    vocab_size: int
    block_size: int  # tokens
    num_blocks: list[int]  # by cache group
    cache_bytes: int
    load_seconds: float


class LaunchCore(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """`config` is an EngineConfig as bytes. `address` is where to listen, for ZMQ."""

    config: bytes
    address: str
    token: bytes
    log_level: int


class Ready(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """The core listens at `address`."""

    address: str
    facts: CoreFacts


class Failed(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """The core could not be built. `error_type` is one of octavo.errors, or what Python raised."""

    error_type: str
    message: str


class Stop(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """End in order, without finishing what is running."""


class Heartbeat(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """To the core, which sends it back between two steps."""

    number: int


CoreState = Literal["starting", "ready", "restarting", "draining", "dead"]


class CoreStatus(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """How the core is. `incarnation` counts its processes from 1."""

    state: CoreState
    incarnation: int
    reason: str = ""  # why it is not ready
    pid: int | None = None
    address: str = ""  # where it listens once it is ready
    facts: CoreFacts | None = None  # of the last one that was ready


class LaunchFrontend(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """`config` is an EngineConfig, `settings` whatever the front end's own program needs; both as bytes."""

    index: int
    count: int
    config: bytes
    settings: bytes
    token: bytes
    log_level: int
