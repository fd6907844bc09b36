"""Rows that share leading blocks, where attention reads these once for all of them: from requests to places in the
batch, at fixed addresses."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch

from octavo.attention.backend import SHARED_PREFIX
from octavo.core.step import MAX_PREFIX_GROUPS, NewRow, StepPlan
from octavo.ops.attention import PrefixGroups
from octavo.ops.device import upload_array
from octavo.runner.batch import Batch


class SharedPrefix:
    """A batch extension. Steps with groups have all the same room for them, so that there are two kinds of graphs:

    one buffer | rows, group by group ... | starts of MAX_PREFIX_GROUPS groups, and the end | their shared blocks |
    """

    def __init__(self, max_rows: int, device: torch.device) -> None:
        sizes = [max_rows, MAX_PREFIX_GROUPS + 1, MAX_PREFIX_GROUPS]
        self._buffer = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        self._rows, self._starts, self._blocks = self._buffer.split(sizes)
        self._written: Sequence[tuple[list[str], int]] = []  # what the buffer holds, and for which batch
        self._order: list[str] = []

    def add(self, row: int, request: NewRow) -> None:
        pass

    def remove(self, row: int) -> None:
        pass

    def build(self, batch: Batch, plan: StepPlan) -> None:
        if plan.shared_prefix:
            if batch.request_ids is not self._order or plan.shared_prefix != self._written:
                self._write(batch.request_ids, plan.shared_prefix)
            batch.step.extras[SHARED_PREFIX] = self.room(batch.step.num_rows)

    def room(self, num_rows: int) -> PrefixGroups:
        """The groups of a step of so many rows, padding included; of one token each."""
        return PrefixGroups(self._rows[:num_rows], self._starts, self._blocks, tokens=1)

    def _write(self, request_ids: list[str], groups: Sequence[tuple[list[str], int]]) -> None:
        place_of = {request_id: place for place, request_id in enumerate(request_ids)}
        packed = np.zeros(len(self._buffer), dtype=np.int32)
        rows, starts, blocks = np.split(packed, np.cumsum([len(self._rows), len(self._starts)]))
        end = 0
        for group, (members, num_blocks) in enumerate(groups):
            rows[end : end + len(members)] = [place_of[request_id] for request_id in members]
            end += len(members)
            starts[group + 1 :] = end
            blocks[group] = num_blocks
        self._buffer.copy_(upload_array(packed, self._buffer.device))
        self._written, self._order = groups, request_ids

    def graph_key(self, batch: Batch) -> Hashable:
        return SHARED_PREFIX in batch.step.extras

    def after(self, batch: Batch, plan: StepPlan) -> None:
        pass
