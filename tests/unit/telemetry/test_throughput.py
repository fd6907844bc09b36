from __future__ import annotations

import logging

import pytest

from octavo.core.messages import StepStats
from octavo.telemetry.throughput import ThroughputLog


def test_a_line_every_ten_seconds_of_work(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    log = ThroughputLog(clock=lambda: now[0])
    stats = StepStats(
        3, 2, 120, 100, cache_usage=0.5, num_generated_tokens=20, num_prefix_queries=40, num_prefix_hits=10
    )
    with caplog.at_level(logging.INFO, "octavo"):
        now[0] = 100.0  # idle until here: counts for nothing
        for _ in range(11):
            log.step(stats)
            now[0] += 1.0
        assert len(caplog.messages) == 1
        assert caplog.messages[0] == (
            "22.0 tokens/s generated, 110.0 of prompts; 3 running, 2 waiting; cache 50.0% used; "
            "25.0% of prompt tokens found in it"
        )
        now[0] += 60.0
        log.step(stats)
        assert len(caplog.messages) == 1
