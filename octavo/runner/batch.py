"""One step's tensors, gathered from the row table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from octavo.attention.backend import GroupStep, StepContext
from octavo.core.step import StepPlan
from octavo.runner.row_table import RowTable


@dataclass(slots=True)
class Batch:
    """R rows and T tokens in the plan's order. `step` is what the model sees; the rest is for sampling."""

    request_ids: list[str]
    rows_host: list[int]
    input_ids: torch.Tensor  # [T] int64
    row_of_token: torch.Tensor  # [T] int64, an index into the batch
    step: StepContext
    sampled: list[int] | None  # indices into the batch of rows that get a token; None: all, in order


@dataclass(slots=True)
class _Shape:
    """What depends only on who is in a step and with how many tokens: in steady decoding, the same step after step."""

    request_ids: list[str]
    counts_host: list[int]
    rows_host: list[int]
    rows_np: np.ndarray
    counts_np: np.ndarray
    rows: torch.Tensor  # [R] int64
    counts: torch.Tensor  # [R] int64
    query_start: torch.Tensor  # [R + 1] int32
    row_of_token: torch.Tensor  # [T] int64
    token_rows: torch.Tensor  # [T] int64: each token's row of the table


class BatchBuilder:
    """Gathers ids, positions, block tables and slots of a plan's tokens, and advances `computed` past them."""

    def __init__(self, table: RowTable, block_size: int) -> None:
        self._table = table
        self._block_size = block_size
        self._shape: _Shape | None = None

    def build(self, plan: StepPlan) -> Batch:
        """After the table has applied the plan."""
        table, shape = self._table, self._shape_of(plan)
        ends_np = table.computed_host[shape.rows_np] + shape.counts_np
        table.computed_host[shape.rows_np] = ends_np
        computed = table.computed[shape.rows]
        if len(shape.row_of_token) == len(shape.rows):
            positions = computed
        else:
            first = computed - shape.query_start[:-1]
            positions = torch.arange(len(shape.row_of_token), device=computed.device) + first[shape.row_of_token]
        seq_lens = computed + shape.counts
        table.computed[shape.rows] = seq_lens
        num_blocks = -(-int(ends_np.max()) // self._block_size)
        block_of_token, offset = positions // self._block_size, positions % self._block_size
        groups = []
        for block_table in table.block_tables:
            column = block_of_token.clamp(max=block_table.shape[1] - 1)  # a state has one place, whatever the position
            slots = block_table[shape.token_rows, column].long() * self._block_size + offset
            groups.append(GroupStep(block_table[shape.rows, :num_blocks], slots))
        step = StepContext(
            positions=positions,
            query_start=shape.query_start,
            seq_lens=seq_lens.to(torch.int32),
            query_lens=shape.counts_host,
            max_seq_lens=ends_np.tolist(),
            groups=groups,
            rows=shape.rows,
        )
        input_ids = table.tokens[shape.token_rows, positions].long()
        return Batch(
            shape.request_ids, shape.rows_host, input_ids, shape.row_of_token, step, _places(plan, shape.request_ids)
        )

    def _shape_of(self, plan: StepPlan) -> _Shape:
        request_ids, counts_host = list(plan.num_scheduled_tokens), list(plan.num_scheduled_tokens.values())
        shape = self._shape
        if (
            shape is None
            or plan.new_rows
            or plan.removed
            or shape.counts_host != counts_host
            or shape.request_ids != request_ids
        ):
            shape = self._shape = self._make_shape(request_ids, counts_host)
        return shape

    def _make_shape(self, request_ids: list[str], counts_host: list[int]) -> _Shape:
        device, row_of = self._table.computed.device, self._table.row_of
        rows_host = [row_of[request_id] for request_id in request_ids]
        rows_np, counts_np = np.array(rows_host, dtype=np.int64), np.array(counts_host, dtype=np.int64)
        starts_np = np.zeros(len(request_ids) + 1, dtype=np.int32)
        np.cumsum(counts_np, out=starts_np[1:])
        num_tokens = int(starts_np[-1])
        rows, counts = torch.from_numpy(rows_np).to(device), torch.from_numpy(counts_np).to(device)
        if num_tokens == len(request_ids):  # one token a row
            row_of_token, token_rows = torch.arange(num_tokens, device=device), rows
        else:
            row_of_token = torch.repeat_interleave(counts, output_size=num_tokens)
            token_rows = rows[row_of_token]
        query_start = torch.from_numpy(starts_np).to(device)
        return _Shape(
            request_ids, counts_host, rows_host, rows_np, counts_np, rows, counts, query_start, row_of_token, token_rows
        )


def _places(plan: StepPlan, request_ids: list[str]) -> list[int] | None:
    if plan.sampled == request_ids:
        return None
    wanted = set(plan.sampled)
    place = {request_id: i for i, request_id in enumerate(request_ids) if request_id in wanted}
    return [place[request_id] for request_id in plan.sampled]
