from __future__ import annotations

import pytest

from octavo.telemetry import phases


def test_phases_follow_one_another_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 12.0, 12.01, 13.5, 14.0])
    monkeypatch.setattr(phases.time, "perf_counter", lambda: next(times))
    found = phases.Phases()
    for name in ("imports", "configuration", "weights", "imports"):
        found.end(name)
    assert found.seconds == pytest.approx({"imports": 2.5, "configuration": 0.01, "weights": 1.49})
    assert str(found) == "imports 2.5 s, weights 1.5 s, in all 4.0 s"
