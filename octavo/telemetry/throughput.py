"""A line in the log every ten seconds while there is work."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from octavo.core.messages import StepStats

logger = logging.getLogger(__name__)


class ThroughputLog:
    """Says what the engine did since the last line. Idle times count for nothing and say nothing."""

    def __init__(self, interval: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.interval, self._clock = interval, clock
        self._begin(clock())

    def _begin(self, now: float) -> None:
        self._began = self._last = now
        self._prompt = self._generated = self._queries = self._hits = self._preempted = 0

    def step(self, stats: StepStats) -> None:
        now = self._clock()
        if now - self._last > self.interval:
            self._begin(now)  # it was idle
        self._last = now
        self._prompt += stats.num_prefill_tokens
        self._generated += stats.num_generated_tokens
        self._queries += stats.num_prefix_queries
        self._hits += stats.num_prefix_hits
        self._preempted += stats.num_preempted
        if now - self._began >= self.interval:
            logger.info("%s", self._line(stats, now - self._began))
            self._begin(now)

    def _line(self, stats: StepStats, seconds: float) -> str:
        parts = [
            f"{self._generated / seconds:,.1f} tokens/s generated, {self._prompt / seconds:,.1f} of prompts",
            f"{stats.num_running} running, {stats.num_waiting} waiting",
            f"cache {stats.cache_usage:.1%} used",
        ]
        if self._queries:
            parts.append(f"{self._hits / self._queries:.1%} of prompt tokens found in it")
        if self._preempted:
            parts.append(f"{self._preempted} preempted")
        return "; ".join(parts)
