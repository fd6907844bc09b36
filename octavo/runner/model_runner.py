"""A plan becomes tensors becomes tokens. Knows no feature, no model, no platform by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from octavo.core.step import NewRow, StepPlan, StepResult, TokenMasks
from octavo.runner.batch import Batch, BatchBuilder
from octavo.runner.extension import BatchExtension
from octavo.runner.finish import Finish
from octavo.runner.model import Model
from octavo.runner.row_table import RowTable


class RowOwner(Protocol):
    """What keeps something for each row."""

    def add(self, row: int, request: NewRow) -> None: ...
    def remove(self, row: int) -> None: ...


@dataclass(slots=True)
class RunningStep:
    """A step on its way: its forward was submitted; then its sampling; then its result is collected."""

    plan: StepPlan
    batch: Batch
    hidden: torch.Tensor | None
    launched: Any = None


class ModelRunner:
    """`scrub(blocks by group)` clears what is not finite from blocks whose row failed."""

    def __init__(
        self,
        model: Model,
        table: RowTable,
        finish: Finish,
        extensions: Sequence[BatchExtension],
        block_size: int,
        scrub: Callable[[Mapping[int, Iterable[int]]], None],
    ) -> None:
        self.model = model
        self.table = table
        self._finish = finish
        self._extensions = extensions
        self._row_owners: tuple[RowOwner, ...] = (finish, *extensions)
        self._batches = BatchBuilder(table, block_size)
        self._scrub = scrub

    @torch.inference_mode()
    def forward(self, plan: StepPlan) -> RunningStep:
        """Rows change as planned, the batch is built, the forward runs."""
        removed, added = self.table.apply(plan)
        for part in self._row_owners:
            for row in removed:
                part.remove(row)
            for row, request in zip(added, plan.new_rows, strict=True):
                part.add(row, request)
        batch = self._batches.build(plan)
        for extension in self._extensions:
            extension.build(batch, plan)
        self.model.plan(batch.step)
        hidden = self.model.forward(batch.input_ids, batch.step)
        for extension in self._extensions:
            extension.after(batch, plan)
        return RunningStep(plan, batch, hidden)

    @torch.inference_mode()
    def finish(self, step: RunningStep, masks: TokenMasks | None = None) -> None:
        """Samples, or whatever this engine makes of hidden states."""
        assert step.hidden is not None
        step.launched = self._finish.launch(step.batch, step.hidden, masks)
        step.hidden = None

    @torch.inference_mode()
    def collect(self, step: RunningStep) -> StepResult:
        result = self._finish.collect(step.plan, step.batch, step.launched)
        for request_id in result.failed:
            self._scrub(self.table.blocks(step.batch.rows_host[step.batch.request_ids.index(request_id)]))
        return result

    def reset(self) -> None:
        """Drops all rows: steps were lost, and whoever goes on is sent anew."""
        for row in self.table.row_of.values():
            for part in self._row_owners:
                part.remove(row)
        self.table.clear()
