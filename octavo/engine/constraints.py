"""Several constraints as one: a token may come if none of them rules it out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octavo.core.hooks import Constraint, Refusal
from octavo.core.request import Request
from octavo.core.step import StepPlan, TokenMasks


class Constraints:
    """Those that need to wait for something come first."""

    def __init__(self, parts: Sequence[Constraint]) -> None:
        self._parts = parts

    def __bool__(self) -> bool:
        return any(self._parts)

    def add(self, request: Request) -> None:
        for part in self._parts:
            part.add(request)

    def masks(self, plan: StepPlan) -> TokenMasks | None:
        found = [masks for part in self._parts if part and (masks := part.masks(plan)) is not None]
        return intersect(found) if len(found) > 1 else found[0] if found else None

    def refusals(self) -> list[Refusal]:
        return [refusal for part in self._parts if part for refusal in part.refusals()]

    def wait(self, seconds: float) -> None:
        self._parts[0].wait(seconds)

    def shutdown(self) -> None:
        for part in self._parts:
            part.shutdown()


def intersect(masks: Sequence[TokenMasks]) -> TokenMasks:
    """What all of them allow; where that is nothing, the last of those that spoke of the row is right."""
    rows: dict[int, np.ndarray] = {}
    for one in masks:
        for place, bits in zip(one.places, one.bits, strict=True):
            both = rows[place] & bits if place in rows else bits
            rows[place] = both if both.any() else bits
    places = sorted(rows)
    return TokenMasks(places, np.stack([rows[place] for place in places]))
