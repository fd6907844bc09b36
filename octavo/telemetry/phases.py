"""What a start spends its seconds on, phase after phase: one line of the log."""

from __future__ import annotations

import time


class Phases:
    """Phases follow one another without a gap; one that comes again is added to. Owned by one thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, name: str) -> None:
        """What came since the end before belongs to `name`."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def __str__(self) -> str:
        parts = [f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items() if seconds >= 0.05]
        return ", ".join([*parts, f"in all {sum(self.seconds.values()):.1f} s"])
