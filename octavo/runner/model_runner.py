"""A plan becomes tensors becomes tokens. Knows no feature, no model, no platform by name."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from octavo.core.step import NewRow, StepPlan, StepResult, TokenMasks
from octavo.ops.batch import mark_bad_rows
from octavo.runner.batch import Batch, Builder
from octavo.runner.extension import BatchExtension
from octavo.runner.finish import Finish
from octavo.runner.graphs import Computed, Graphs, GraphTotals
from octavo.runner.model import Model
from octavo.runner.row_table import RowTable

LEAST_TOKENS_A_ROW = 4  # from here on it pays to compute the last layer's end for the last token of each row alone


class RowOwner(Protocol):
    """What keeps something for each row."""

    def add(self, row: int, request: NewRow) -> None: ...
    def remove(self, row: int) -> None: ...


@dataclass(slots=True)
class RunningStep:
    """A step on its way: its forward was submitted; then its sampling; then its result is collected."""

    plan: StepPlan
    batch: Batch
    computed: Computed | None
    launched: Any = None


class ModelRunner:
    """`scrub(blocks by group)` clears what is not finite from blocks whose row failed."""

    def __init__(
        self,
        model: Model,
        table: RowTable,
        finish: Finish,
        extensions: Sequence[BatchExtension],
        batches: Builder,
        graphs: Graphs,
        scrub: Callable[[Mapping[int, Iterable[int]]], None],
    ) -> None:
        self.model = model
        self.table = table
        self._finish = finish
        self._extensions = extensions
        self._row_owners: tuple[RowOwner, ...] = (finish, *extensions)
        self._batches = batches
        self._graphs = graphs
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
        batch.scored = plan.scored
        for extension in self._extensions:
            extension.build(batch, plan)
        computed = self._graphs.run(batch, self._graph_key(batch), self._compute)
        for extension in self._extensions:
            extension.after(batch, plan)
        return RunningStep(plan, batch, computed)

    def _graph_key(self, batch: Batch) -> Hashable | None:
        """None for a step that is not padded."""
        if batch.bucket is None:
            return None
        keys = (extension.graph_key(batch) for extension in self._extensions)
        return batch.bucket, bool(batch.scored), self.model.graph_key(batch.step), *keys

    def _compute(self, batch: Batch) -> Computed:
        """What a graph captures: hidden states, and the rows where they are not finite."""
        step = batch.step
        if not batch.scored and step.num_tokens >= LEAST_TOKENS_A_ROW * step.num_rows:
            # Of a row of padding, that of another; of a rehearsal, whose batch nobody wrote, the first.
            step.last_tokens = (step.query_start[1:].long() - 1).clamp_(min=0)
        self.model.plan(step)
        hidden = self.model.forward(batch.input_ids, step)
        return hidden, mark_bad_rows(hidden, batch.row_of_token, step.num_rows)

    @torch.inference_mode()
    def finish(self, step: RunningStep, masks: TokenMasks | None = None) -> None:
        """Samples, or whatever this engine makes of hidden states."""
        assert step.computed is not None
        step.launched = self._finish.launch(step.batch, *step.computed, masks)
        step.computed = None

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

    def graph_totals(self) -> GraphTotals:
        return self._graphs.totals()

    def release(self) -> None:
        """The same, and captured graphs are given back: while the device's libraries are there to do it."""
        self.reset()
        self._graphs.release()
