"""The backend of recurrent layers: which rows of a step go on from which states. Their kernels are ops (ops/ssm.py).

A group's block table has in its first column each row's live block: the state after the row's last computed token. The
step's tokens go on from it and leave the new one in the same place.
"""

from __future__ import annotations

from collections.abc import Hashable

from octavo.attention.backend import StepContext
from octavo.ops.state_rows import StateRows


class RecurrentBackend:
    name = "recurrent"
    is_capturable = False
    reads_shared_prefix = False

    def plan(self, step: StepContext, group: int) -> StateRows:
        # A row without a past is known on the host, where the bound of its length is exact.
        may_be_fresh = any(map(int.__eq__, step.max_seq_lens, step.query_lens))
        fresh = step.seq_lens == step.query_start.diff() if may_be_fresh else None
        blocks = step.groups[group].block_table[:, 0].long()
        return StateRows(blocks, fresh, step.query_start, step.query_lens)

    def graph_key(self, step: StepContext) -> Hashable:
        return None
