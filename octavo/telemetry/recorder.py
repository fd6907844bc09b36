"""Recorder: what the front end tells about its work, and who hears of it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from octavo.config.engine_config import EngineConfig
from octavo.core.messages import StepStats
from octavo.telemetry.finished import FinishedCompletion, FinishedRequest
from octavo.telemetry.live import LiveView
from octavo.telemetry.metrics import Metrics, cache_info
from octavo.telemetry.throughput import ThroughputLog

if TYPE_CHECKING:
    from octavo.telemetry.tracing import Tracer


class Recorder:
    """Fans out to metrics, log, live view and traces, each of which may be absent. Owned by the event loop."""

    def __init__(
        self,
        metrics: Metrics | None = None,
        log: ThroughputLog | None = None,
        live: LiveView | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.metrics, self.log, self.live, self.tracer = metrics, log, live, tracer

    @classmethod
    def from_config(cls, config: EngineConfig, model_name: str, *, num_blocks: int | None = None) -> Recorder:
        """What `config` asks for: without statistics only traces are left. Raises ConfigurationError where tracing is
        asked for and its packages are missing."""
        endpoint = config.machine.otlp_traces_endpoint
        tracer = None
        if endpoint is not None:  # its packages take their time to import
            tracer = import_module("octavo.telemetry.tracing").Tracer.to_endpoint(endpoint, model_name)
        if not config.machine.log_stats:
            return cls(tracer=tracer)
        metrics = Metrics(
            model_name,
            prefix=config.machine.metrics_prefix,
            max_model_len=config.scheduler.max_model_len,
            cache_info=cache_info(config.cache, num_blocks),
            block_lives=config.machine.block_lives_sample > 0,
        )
        live = LiveView(model_name, config.scheduler.max_num_batched_tokens, config.scheduler.max_num_seqs)
        return cls(metrics, ThroughputLog(), live, tracer)

    def step(self, stats: StepStats) -> None:
        if self.metrics is not None:
            self.metrics.step(stats)
        if self.log is not None:
            self.log.step(stats)
        if self.live is not None:
            self.live.step(stats)

    def first_token(self, seconds: float) -> None:
        if self.metrics is not None:
            self.metrics.first_token(seconds)

    def interval(self, seconds: float, count: int) -> None:
        if self.metrics is not None:
            self.metrics.interval(seconds, count)

    def rejection(self, limit: str) -> None:
        """A request was turned away; `limit` is the option that set the limit."""
        if self.metrics is not None:
            self.metrics.rejection(limit)

    def tool_call_parser(self, streaming: bool, api: str, found: bool) -> None:
        """An answer was searched for tool calls."""
        if self.metrics is not None:
            self.metrics.tool_call_parser(streaming=streaming, found=found, request_type=api)

    def completion(self, ended: FinishedCompletion) -> None:
        if self.metrics is not None:
            self.metrics.completion(ended)

    def request(self, ended: FinishedRequest) -> None:
        if self.metrics is not None:
            self.metrics.request(ended)
        if self.tracer is not None:
            self.tracer.request(ended)

    def close(self) -> None:
        """Ends the live view's streams, and sends what traces are left. May be called again."""
        if self.live is not None:
            self.live.close()
        if self.tracer is not None:
            self.tracer.close()
