"""How a feature with per-request device state joins a step, without the runner knowing it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from octavo.core.step import NewRow, StepPlan
from octavo.runner.batch import Batch


class BatchExtension(Protocol):
    def add(self, row: int, request: NewRow) -> None: ...

    def remove(self, row: int) -> None: ...

    def build(self, batch: Batch, plan: StepPlan) -> None:
        """Before the forward: puts what the model needs into `batch.step.extras` (buffers are allocated once)."""

    def graph_key(self, batch: Batch) -> Hashable:
        """Steps with equal keys may share a captured graph."""

    def after(self, batch: Batch, plan: StepPlan) -> None:
        """After the forward was submitted."""
