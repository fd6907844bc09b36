"""A step's tensors from the row table, in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from octavo.ops.dispatch import bound


@dataclass(slots=True)
class StepBuffers:
    """What a step is written to: the same addresses step after step."""

    input_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64
    row_of_token: torch.Tensor  # [T] int64
    query_start: torch.Tensor  # [R + 1] int32
    seq_lens: torch.Tensor  # [R] int32
    rows: torch.Tensor  # [R] int64
    slots: list[torch.Tensor]  # a group: [T] int64
    block_tables: list[torch.Tensor]  # a group: [R, B] int32

    @classmethod
    def allocate(cls, num_tokens: int, num_rows: int, widths: Sequence[int], device: torch.device) -> StepBuffers:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            input_ids=zeros(num_tokens),
            positions=zeros(num_tokens),
            row_of_token=zeros(num_tokens),
            query_start=zeros(num_rows + 1, dtype=torch.int32),
            seq_lens=zeros(num_rows, dtype=torch.int32),
            rows=zeros(num_rows),
            slots=[zeros(num_tokens) for _ in widths],
            block_tables=[zeros(num_rows, width, dtype=torch.int32) for width in widths],
        )


def build_batch(
    tokens: torch.Tensor,
    computed: torch.Tensor,
    block_tables: Sequence[torch.Tensor],
    rows_R: torch.Tensor,
    counts_R: torch.Tensor,
    buffers: StepBuffers,
    num_tokens: int,
    padded_tokens: int,
    padded_rows: int,
    block_size: int,
    pad_slot: int,
) -> None:
    """Fills `buffers` with a step in which row `rows[r]` of the table computes its next `counts[r]` tokens, in order of
    r, and adds these counts to `computed`.

    tokens [max_rows, N] int32: the rows' tokens; computed [max_rows] int64: how many are in the cache; block_tables, a
    group each, [max_rows, B] int32: where. rows and counts [R] int64; num_tokens is the sum of counts.
    Token t of batch row r has position computed + its index in the row, and in each group the slot
    block_table[row, min(position // block_size, B - 1)] * block_size + position % block_size. Buffers are written up
    to `padded_tokens` and `padded_rows`: padding has input id 0, position 0, row_of_token `padded_rows`, `pad_slot`;
    query_start num_tokens, seq_lens 0, rows 0. Of a row's block table only the blocks that hold its tokens are written;
    of a padded row, none.
    """
    bound.build_batch(
        tokens,
        computed,
        block_tables,
        rows_R,
        counts_R,
        buffers,
        num_tokens,
        padded_tokens,
        padded_rows,
        block_size,
        pad_slot,
    )


def append_sampled(tokens: torch.Tensor, length: torch.Tensor, rows_S: torch.Tensor, token_ids_S: torch.Tensor) -> None:
    """tokens[row, length[row]] = token id, and one more in length, for each of S different rows (int64)."""
    bound.append_sampled(tokens, length, rows_S, token_ids_S)
