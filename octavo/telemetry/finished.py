"""Requests that have ended, as metrics and traces need them."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType

from octavo.core.messages import Timing
from octavo.core.params import SamplingParams


@dataclass(slots=True)
class FinishedCompletion:
    """One of a request's n completions. Seconds; None where it never came so far."""

    finish_reason: str
    num_prompt_tokens: int
    num_cached_tokens: int
    num_tokens: int  # made
    seconds: float  # from arrival to the end
    first_token_seconds: float | None = None  # from arrival
    queue_seconds: float | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    num_preemptions: int = 0

    def add_core_times(self, timing: Timing | None, decode_seconds: float | None = None) -> None:
        """The phases, each a difference on the core's clock. `decode_seconds` replaces the core's, where it was the
        front end that ended the request."""
        if timing is None:
            return
        self.num_preemptions = timing.num_preemptions
        if timing.scheduled:
            self.queue_seconds = timing.scheduled - timing.queued
        if timing.first_token:
            self.prefill_seconds = timing.first_token - timing.scheduled
            self.decode_seconds = timing.last_token - timing.first_token if decode_seconds is None else decode_seconds


@dataclass(slots=True)
class FinishedRequest:
    """A request all of whose completions have ended."""

    request_id: str
    params: SamplingParams
    num_prompt_tokens: int
    num_tokens: list[int]  # by completion
    completions: list[FinishedCompletion]
    trace_headers: Mapping[str, str] = field(default_factory=dict)


TRACE_HEADERS = ("traceparent", "tracestate")  # W3C Trace Context

# the trace headers of the HTTP request that is being served
current_trace: ContextVar[Mapping[str, str]] = ContextVar("current_trace", default=MappingProxyType({}))


def trace_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """What of a request's HTTP headers names the trace that it belongs to."""
    return {name: headers[name] for name in TRACE_HEADERS if name in headers}
