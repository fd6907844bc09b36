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


def build_batch(plan: StepPlan, table: RowTable, block_size: int) -> Batch:
    """Gathers ids, positions, block tables and slots of the plan's tokens, and advances `computed` past them."""
    device = table.computed.device
    request_ids = list(plan.num_scheduled_tokens)
    row_of = table.row_of
    rows_host = [row_of[request_id] for request_id in request_ids]
    rows_np = np.array(rows_host, dtype=np.int64)
    counts_np = np.fromiter(plan.num_scheduled_tokens.values(), np.int64, len(request_ids))
    ends_np = table.computed_host[rows_np] + counts_np
    table.computed_host[rows_np] = ends_np
    starts_np = np.zeros(len(request_ids) + 1, dtype=np.int32)
    np.cumsum(counts_np, out=starts_np[1:])
    num_tokens = int(starts_np[-1])

    rows = torch.from_numpy(rows_np).to(device)
    counts = torch.from_numpy(counts_np).to(device)
    query_start = torch.from_numpy(starts_np).to(device)
    computed = table.computed[rows]
    if num_tokens == len(request_ids):  # one token a row
        row_of_token = torch.arange(num_tokens, device=device)
        positions = computed
        token_rows = rows
    else:
        row_of_token = torch.repeat_interleave(counts, output_size=num_tokens)
        first = computed - query_start[:-1]
        positions = torch.arange(num_tokens, device=device) + first[row_of_token]
        token_rows = rows[row_of_token]
    seq_lens = computed + counts
    table.computed[rows] = seq_lens

    num_blocks = -(-int(ends_np.max()) // block_size)
    block_of_token, offset = positions // block_size, positions % block_size
    groups = []
    for block_table in table.block_tables:
        slots = block_table[token_rows, block_of_token].long() * block_size + offset
        groups.append(GroupStep(block_table[rows, :num_blocks], slots))
    step = StepContext(
        positions=positions,
        query_start=query_start,
        seq_lens=seq_lens.to(torch.int32),
        query_lens=counts_np.tolist(),
        max_seq_lens=ends_np.tolist(),
        groups=groups,
        rows=rows,
    )
    input_ids = table.tokens[token_rows, positions].long()
    sampled: list[int] | None
    if plan.sampled == request_ids:
        sampled = None
    else:
        wanted = set(plan.sampled)
        place = {request_id: i for i, request_id in enumerate(request_ids) if request_id in wanted}
        sampled = [place[request_id] for request_id in plan.sampled]
    return Batch(request_ids, rows_host, input_ids, row_of_token, step, sampled)
