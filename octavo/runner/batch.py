"""One step's tensors, gathered from the row table.

BatchBuilder makes them anew each step, as large as the step. StaticBatchBuilder writes them to fixed addresses, padded
to a bucket, so that a captured graph can read them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from octavo.attention.backend import GroupStep, StepContext
from octavo.core.buckets import Buckets, ExactSizes
from octavo.core.step import StepPlan
from octavo.ops.batch import build_batch
from octavo.ops.device import upload_array
from octavo.runner.row_table import RowTable


@dataclass(slots=True)
class Batch:
    """R rows and T tokens. `step` is what the model sees, padded where the builder pads: then the first R and T of its
    tensors are real. The rest is for sampling: S rows, in the order of the plan's `sampled`."""

    request_ids: list[str]
    rows_host: list[int]
    input_ids: torch.Tensor  # [T] int64
    row_of_token: torch.Tensor  # [T] int64, an index into the batch; of padding, the number of rows
    step: StepContext
    sampled_tokens: torch.Tensor | None  # [S] int64: where their last tokens are; None: the first S, in order
    sampled_rows: torch.Tensor  # [S] int64: rows of the table
    sampled_rows_host: list[int]
    bucket: tuple[int, int] | None = None  # tokens and rows with padding; None: not padded
    scored: dict[str, tuple[int, int]] = field(default_factory=dict)  # prompt positions to score, as planned


class Builder(Protocol):
    def build(self, plan: StepPlan) -> Batch:
        """After the table has applied the plan. Advances `computed` past the plan's tokens."""


@dataclass(slots=True)
class _Shape:
    """What depends only on who is in a step and with how many tokens: in steady decoding, the same step after step."""

    plan_ids: list[str]
    plan_counts: list[int]
    plan_sampled: list[str]
    request_ids: list[str]
    counts_host: list[int]
    rows_host: list[int]
    rows_np: np.ndarray
    counts_np: np.ndarray
    starts_np: np.ndarray
    rows: torch.Tensor  # [R] int64
    counts: torch.Tensor  # [R] int64
    sampled_tokens: torch.Tensor | None
    sampled_rows: torch.Tensor
    sampled_rows_host: list[int]


class _Shapes:
    """Keeps the last one. `short_first` puts rows of one token before the others: kernels for either see a range."""

    def __init__(self, table: RowTable, short_first: bool) -> None:
        self._table, self._short_first = table, short_first
        self._shape: _Shape | None = None

    def of(self, plan: StepPlan) -> tuple[_Shape, bool]:
        """And whether it is another than that of the step before."""
        ids, counts = list(plan.num_scheduled_tokens), list(plan.num_scheduled_tokens.values())
        shape = self._shape
        if (
            shape is not None
            and not plan.new_rows
            and not plan.removed
            and shape.plan_counts == counts
            and shape.plan_ids == ids
            and shape.plan_sampled == plan.sampled
        ):
            return shape, False
        self._shape = self._make(ids, counts, plan.sampled)
        return self._shape, True

    def _make(self, plan_ids: list[str], plan_counts: list[int], sampled: list[str]) -> _Shape:
        device, row_of = self._table.computed.device, self._table.row_of
        request_ids, counts = plan_ids, plan_counts
        if self._short_first and any(count > 1 for count in counts):
            order = sorted(range(len(counts)), key=lambda i: counts[i] > 1)
            request_ids, counts = [plan_ids[i] for i in order], [plan_counts[i] for i in order]
        rows_host = [row_of[request_id] for request_id in request_ids]
        num_rows = len(rows_host)
        starts_np = np.zeros(num_rows + 1, dtype=np.int64)
        np.cumsum(counts, out=starts_np[1:])
        if sampled == request_ids:
            places = list(range(num_rows))
        else:
            place_of = {request_id: i for i, request_id in enumerate(request_ids)}
            places = [place_of[request_id] for request_id in sampled]
        tokens_np = starts_np[1:][places] - 1
        sampled_rows_host = [rows_host[i] for i in places]
        packed = upload_array(
            np.concatenate([rows_host, counts, tokens_np, sampled_rows_host]).astype(np.int64), device
        )
        rows, row_counts, tokens, sampled_rows = packed.split([num_rows, num_rows, len(places), len(places)])
        in_order = bool((tokens_np == np.arange(len(places))).all())
        return _Shape(
            plan_ids,
            plan_counts,
            list(sampled),
            request_ids,
            counts,
            rows_host,
            np.array(rows_host, dtype=np.int64),
            np.array(counts, dtype=np.int64),
            starts_np,
            rows,
            row_counts,
            None if in_order else tokens,
            sampled_rows,
            sampled_rows_host,
        )


class BatchBuilder:
    """Gathers ids, positions, block tables and slots of a plan's tokens."""

    def __init__(self, table: RowTable, block_size: int) -> None:
        self._table = table
        self._block_size = block_size
        self._shapes = _Shapes(table, short_first=False)
        self._query_start = self._row_of_token = self._token_rows = table.computed

    def build(self, plan: StepPlan) -> Batch:
        table, (shape, is_new) = self._table, self._shapes.of(plan)
        if is_new:
            self._lay_out(shape)
        query_start, row_of_token, token_rows = self._query_start, self._row_of_token, self._token_rows
        ends_np = table.computed_host[shape.rows_np] + shape.counts_np
        table.computed_host[shape.rows_np] = ends_np
        computed = table.computed[shape.rows]
        if len(row_of_token) == len(shape.rows):
            positions = computed
        else:
            first = computed - query_start[:-1]
            positions = torch.arange(len(row_of_token), device=computed.device) + first[row_of_token]
        seq_lens = computed + shape.counts
        table.computed[shape.rows] = seq_lens
        num_blocks = -(-int(ends_np.max()) // self._block_size)
        block_of_token, offset = positions // self._block_size, positions % self._block_size
        groups = []
        for block_table in table.block_tables:
            column = block_of_token.clamp(max=block_table.shape[1] - 1)  # a state has one place, whatever the position
            slots = block_table[token_rows, column].long() * self._block_size + offset
            groups.append(GroupStep(block_table[shape.rows, :num_blocks], slots))
        step = StepContext(
            positions=positions,
            query_start=query_start,
            seq_lens=seq_lens.to(torch.int32),
            query_lens=shape.counts_host,
            max_seq_lens=ends_np.tolist(),
            groups=groups,
            rows=shape.rows,
        )
        return Batch(
            shape.request_ids,
            shape.rows_host,
            table.tokens[token_rows, positions].long(),
            row_of_token,
            step,
            shape.sampled_tokens,
            shape.sampled_rows,
            shape.sampled_rows_host,
        )

    def _lay_out(self, shape: _Shape) -> None:
        device, num_tokens = self._table.computed.device, int(shape.starts_np[-1])
        if num_tokens == len(shape.rows_host):  # one token a row
            self._row_of_token, self._token_rows = torch.arange(num_tokens, device=device), shape.rows
        else:
            self._row_of_token = torch.repeat_interleave(shape.counts, output_size=num_tokens)
            self._token_rows = shape.rows[self._row_of_token]
        self._query_start = upload_array(shape.starts_np.astype(np.int32), device)


class StaticBatchBuilder:
    """One kernel writes a step into buffers that are made once. Rows of one token come first. Tokens of padding have
    position 0 and a slot below 0, where nothing is written; rows of padding have no tokens and length 0."""

    def __init__(self, table: RowTable, block_size: int, buckets: Buckets | ExactSizes, max_tokens: int) -> None:
        self._table, self._block_size, self._buckets = table, block_size, buckets
        self._shapes = _Shapes(table, short_first=True)
        max_rows = len(table.computed)
        device = table.computed.device
        num_rows = max([max_rows, *buckets.decode, *buckets.mixed_rows])
        num_tokens = max([max_tokens, num_rows, *buckets.mixed_tokens])

        def buffer(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._input_ids, self._positions, self._row_of_token = (buffer(num_tokens) for _ in range(3))
        self._query_start = buffer(num_rows + 1, dtype=torch.int32)
        self._seq_lens = buffer(num_rows, dtype=torch.int32)
        self._rows = buffer(num_rows)
        self._slots = [buffer(num_tokens) for _ in table.block_tables]
        self._block_tables = [buffer(num_rows, one.shape[1], dtype=torch.int32) for one in table.block_tables]
        self._counts = buffer(num_rows)  # of the step at hand, and padding
        self._query_lens: list[int] = []

    def build(self, plan: StepPlan) -> Batch:
        table, (shape, is_new) = self._table, self._shapes.of(plan)
        num_tokens, num_rows = int(shape.starts_np[-1]), len(shape.rows_host)
        bucket = self._buckets.fit(num_tokens, num_rows)
        tokens, rows = bucket or (num_tokens, num_rows)
        padding = [0] * (rows - num_rows)
        if is_new:
            self._query_lens = shape.counts_host + padding
            self._rows[:num_rows], self._counts[:num_rows] = shape.rows, shape.counts
            self._rows[num_rows:rows], self._counts[num_rows:rows] = 0, 0
        ends_np = table.computed_host[shape.rows_np] + shape.counts_np
        table.computed_host[shape.rows_np] = ends_np
        step = StepContext(
            positions=self._positions[:tokens],
            query_start=self._query_start[: rows + 1],
            seq_lens=self._seq_lens[:rows],
            query_lens=self._query_lens,
            max_seq_lens=ends_np.tolist() + padding,
            groups=[
                GroupStep(block_table[:rows], slots[:tokens])
                for block_table, slots in zip(self._block_tables, self._slots, strict=True)
            ],
            rows=self._rows[:rows],
        )
        batch = Batch(
            shape.request_ids,
            shape.rows_host,
            self._input_ids[:tokens],
            self._row_of_token[:tokens],
            step,
            shape.sampled_tokens,
            shape.sampled_rows,
            shape.sampled_rows_host,
            bucket,
        )
        build_batch(
            step.rows,
            self._counts[:rows],
            table.tokens,
            table.computed,
            table.block_tables,
            self._block_size,
            batch.input_ids,
            step.positions,
            batch.row_of_token,
            step.query_start,
            step.seq_lens,
            [group.slots for group in step.groups],
            [group.block_table for group in step.groups],
        )
        return batch
