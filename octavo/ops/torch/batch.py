"""The specification of `octavo.ops.batch`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def build_batch(
    tokens: torch.Tensor,
    computed: torch.Tensor,
    block_tables: Sequence[torch.Tensor],
    rows_R: torch.Tensor,
    counts_R: torch.Tensor,
    buffers: Any,
    num_tokens: int,
    padded_tokens: int,
    padded_rows: int,
    block_size: int,
    pad_slot: int,
) -> None:
    num_rows = len(rows_R)
    start = computed[rows_R]
    ends = counts_R.cumsum(0)
    buffers.query_start[0] = 0
    buffers.query_start[1 : num_rows + 1] = ends
    buffers.query_start[num_rows + 1 : padded_rows + 1] = num_tokens
    seq_lens = start + counts_R
    buffers.seq_lens[:num_rows] = seq_lens
    buffers.seq_lens[num_rows:padded_rows] = 0
    buffers.rows[:num_rows] = rows_R
    buffers.rows[num_rows:padded_rows] = 0
    row_of_token = torch.repeat_interleave(counts_R, output_size=num_tokens)
    table_row = rows_R[row_of_token]
    first = start - (ends - counts_R)
    positions = torch.arange(num_tokens, device=tokens.device) + first[row_of_token]
    buffers.row_of_token[:num_tokens] = row_of_token
    buffers.row_of_token[num_tokens:padded_tokens] = padded_rows
    buffers.positions[:num_tokens] = positions
    buffers.positions[num_tokens:padded_tokens] = 0
    buffers.input_ids[:num_tokens] = tokens[table_row, positions]
    buffers.input_ids[num_tokens:padded_tokens] = 0
    for table, slots, out in zip(block_tables, buffers.slots, buffers.block_tables, strict=True):
        column = (positions // block_size).clamp(max=table.shape[1] - 1)
        slots[:num_tokens] = table[table_row, column].long() * block_size + positions % block_size
        slots[num_tokens:padded_tokens] = pad_slot
        out[:num_rows] = table[rows_R]
    computed[rows_R] = seq_lens


def append_sampled(tokens: torch.Tensor, length: torch.Tensor, rows_S: torch.Tensor, token_ids_S: torch.Tensor) -> None:
    tokens[rows_S, length[rows_S]] = token_ids_S.to(torch.int32)
    length[rows_S] += 1
