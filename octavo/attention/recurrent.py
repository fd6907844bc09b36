"""The backend of recurrent layers: which rows of a step go on from which states. Their kernels are ops (ops/ssm.py).

A group's block table has in its first column each row's live block: the state after the row's last computed token. The
step's tokens go on from it and leave the new one in the same place.
"""

from __future__ import annotations

from collections.abc import Hashable

from octavo.attention.backend import StepContext
from octavo.ops import dispatch
from octavo.ops.state_rows import RowBounds, StateRows, row_bounds

OPS = ("causal_conv1d", "selective_scan", "ssd")


class RecurrentBackend:
    name = "recurrent"
    reads_shared_prefix = False

    def __init__(self) -> None:
        self._bounds: tuple[list[int], RowBounds] | None = None

    def prepare(self) -> None:
        """Nothing to load."""

    @property
    def is_capturable(self) -> bool:
        """The specification walks rows in an order that is made on the host; kernels read them on the device."""
        return all(map(dispatch.is_specialised, OPS))

    def plan(self, step: StepContext, group: int) -> StateRows:
        blocks = step.groups[group].block_table[:, 0].long()
        derived = {"bounds": self.bounds(step)} if self.is_capturable else {}
        # A row without a past is known on the host, where the bound of its length is exact.
        may_be_fresh = self.is_capturable or any(map(int.__eq__, step.max_seq_lens, step.query_lens))
        fresh = step.seq_lens == step.query_start.diff() if may_be_fresh else None
        return StateRows(blocks, fresh, step.query_start, step.query_lens, derived)

    def graph_key(self, step: StepContext) -> Hashable:
        return self.bounds(step) if self.is_capturable else None

    def bounds(self, step: StepContext) -> RowBounds:
        """Of all steps with this one's sizes and graph key."""
        lens = step.query_lens
        if self._bounds is None or self._bounds[0] is not lens:  # in steady decoding the same list step after step
            self._bounds = lens, row_bounds(lens)
        return self._bounds[1]
