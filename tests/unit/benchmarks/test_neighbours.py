"""Other programs are told from the one that is measured."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from benchmarks.peers import neighbours
from benchmarks.peers.neighbours import Neighbours, wait_for_quiet

SPIN = "import time; until = time.perf_counter() + 60\nwhile time.perf_counter() < until: pass"


def test_a_program_counts_unless_it_is_the_one_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", SPIN]) as program:
        try:
            pid = program.pid
            before = neighbours.psutil.Process(pid).cpu_times()
            # only this program exists in the accounts
            monkeypatch.setattr(
                neighbours, "_busy_seconds", lambda: sum(neighbours.psutil.Process(pid).cpu_times()[:2])
            )
            other, own = Neighbours(), Neighbours(pid)
            deadline = time.perf_counter() + 20
            while sum(neighbours.psutil.Process(pid).cpu_times()[:2]) - sum(before[:2]) < 0.3:
                assert time.perf_counter() < deadline
                time.sleep(0.02)
            assert other.share() > 0 and own.share() == 0
        finally:
            program.kill()


def test_waiting_ends_when_it_is_quiet_or_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.9, 0.5, 0.05, 0.9])
    monkeypatch.setattr(Neighbours, "share", lambda self: next(shares))
    assert wait_for_quiet(60, interval=0.001) == 0.05
    assert wait_for_quiet(0, interval=0.001) == 0.9
