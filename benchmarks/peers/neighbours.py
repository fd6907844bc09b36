"""How much of the machine other programs take while something is measured: beside busy ones a figure means little."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import psutil

from benchmarks.comparison import BUSY


class Neighbours:
    """Looks at the processors' own accounts. `pid`: the process that is measured, with all it starts; this one and it
    are no neighbours."""

    def __init__(self, pid: int | None = None) -> None:
        self._pid = pid
        self._own = 0.0
        self._last = (time.perf_counter(), _busy_seconds(), self._own_seconds())

    def share(self) -> float:
        """0 to 1, of all processors, since the last call. Other machines on the same hardware count too."""
        now = (time.perf_counter(), _busy_seconds(), self._own_seconds())
        (began, busy_then, own_then), self._last = self._last, now
        others = (now[1] - busy_then) - (now[2] - own_then)
        # the accounts are kept in steps of 10 ms
        return round(min(max(0.0, others / max(now[0] - began, 0.01) / (os.cpu_count() or 1)), 1.0), 3)

    def _own_seconds(self) -> float:
        """Never less than before: what a process used still counts once it has ended."""
        own = sum(os.times()[:2])
        if self._pid is not None:
            with contextlib.suppress(psutil.Error):
                first = psutil.Process(self._pid)
                for process in [first, *first.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error):
                        own += sum(process.cpu_times()[:4])  # its own, and of its children that have ended
        self._own = max(self._own, own)
        return self._own


def wait_for_quiet(limit: float, interval: float = 2.0) -> float:
    """Until others take little for a while, at most `limit` seconds; the share that they took last."""
    neighbours, until = Neighbours(), time.perf_counter() + limit
    while True:
        time.sleep(interval)
        share = neighbours.share()
        if share < BUSY or time.perf_counter() >= until:
            return share


def _busy_seconds() -> float:
    """Of all processors together, time that the host gave to other machines included."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, _, _, interrupt, soft, steal = map(int, fields[1:9])
    return (user + nice + system + interrupt + soft + steal) / os.sysconf("SC_CLK_TCK")
