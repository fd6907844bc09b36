"""Copies of recurrent states, to checkpoints and back, before the forward that would overwrite or read them."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from octavo.core.step import NewRow, StepPlan
from octavo.runner.batch import Batch


class StateCopies:
    """A batch extension. `copy(group, from block, to block)` is the cache's; the order of the plan is kept."""

    def __init__(self, copy: Callable[[int, int, int], None]) -> None:
        self._copy = copy

    def add(self, row: int, request: NewRow) -> None:
        pass

    def remove(self, row: int) -> None:
        pass

    def build(self, batch: Batch, plan: StepPlan) -> None:
        for group, source, target in plan.page_copies:
            self._copy(group, source, target)

    def graph_key(self, batch: Batch) -> Hashable:
        return None

    def after(self, batch: Batch, plan: StepPlan) -> None:
        pass
