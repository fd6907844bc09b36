"""Times → the figures of a report. Seconds in, rounded numbers out; only the names say milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PERCENTILES = (10, 25, 50, 75, 90, 99)


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest ranks."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def distribution(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """mean, p10 … p99, max; empty without values. `scale` 1000 makes milliseconds of seconds."""
    if not values:
        return {}
    figures = {"mean": sum(values) / len(values)}
    figures |= {f"p{percent}": percentile(values, percent) for percent in PERCENTILES}
    figures["max"] = max(values)
    return {name: rounded(value * scale) for name, value in figures.items()}


def repetitions(seconds: Sequence[float]) -> dict[str, Any]:
    """All of them, the best, the median, and how far apart they are in relation to the best."""
    best = min(seconds)
    return {
        "seconds": [rounded(value) for value in seconds],
        "best_seconds": rounded(best),
        "median_seconds": rounded(percentile(seconds, 50)),
        "spread": rounded((max(seconds) - best) / best),
    }


def rounded(value: float) -> float:
    """Five digits that mean something."""
    return float(f"{value:.5g}")
