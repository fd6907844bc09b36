"""A step's tensors in torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def build_batch(
    rows_R: Tensor,
    counts_R: Tensor,
    tokens: Tensor,
    computed: Tensor,
    block_tables: Sequence[Tensor],
    block_size: int,
    input_ids_T: Tensor,
    positions_T: Tensor,
    row_of_token_T: Tensor,
    query_start: Tensor,
    seq_lens_R: Tensor,
    slots: Sequence[Tensor],
    gathered: Sequence[Tensor],
) -> None:
    """Sizes depend on values: waits for the device."""
    counts = counts_R.long()
    num_rows, num_tokens = int((counts > 0).sum()), int(counts.sum())
    rows, counts = rows_R[:num_rows].long(), counts[:num_rows]
    query_start[0] = 0
    query_start[1:] = counts_R.cumsum(0)
    row_of_token = torch.repeat_interleave(counts, output_size=num_tokens)
    inside = torch.arange(num_tokens, device=counts.device) - query_start[:-1][row_of_token]
    token_rows = rows[row_of_token]
    positions = computed[token_rows] + inside
    seq_lens = computed[rows] + counts
    computed[rows] = seq_lens
    for buffer, values in (
        (seq_lens_R, seq_lens),
        (positions_T, positions),
        (input_ids_T, tokens[token_rows, positions]),
    ):
        buffer[: len(values)] = values
        buffer[len(values) :] = 0
    row_of_token_T[:num_tokens] = row_of_token
    row_of_token_T[num_tokens:] = len(rows_R)
    for block_table, slots_T, gathered_RB in zip(block_tables, slots, gathered, strict=True):
        column = (positions // block_size).clamp(max=block_table.shape[1] - 1)
        slots_T[:num_tokens] = block_table[token_rows, column].long() * block_size + positions % block_size
        slots_T[num_tokens:] = -1
        for place, length in enumerate(seq_lens.tolist()):
            num_blocks = min(-(-length // block_size), gathered_RB.shape[1], block_table.shape[1])
            gathered_RB[place, :num_blocks] = block_table[rows[place], :num_blocks]
        gathered_RB[num_rows:, :1] = 0


def append_sampled(rows_S: Tensor, token_ids_S: Tensor, tokens: Tensor, length: Tensor) -> None:
    """The same."""
    is_real = rows_S >= 0
    rows, token_ids = rows_S[is_real].long(), token_ids_S[is_real]
    tokens[rows, length[rows]] = token_ids.to(tokens.dtype)
    length[rows] += 1


def mark_bad_rows(hidden_TD: Tensor, row_of_token_T: Tensor, num_rows: int) -> Tensor:
    # any NaN or infinity in a token's state makes its sum one; float32, where a sum of finite states stays finite
    is_bad_T = ~torch.isfinite(hidden_TD.sum(-1, dtype=torch.float32))
    num_bad = torch.zeros(num_rows + 1, dtype=torch.int32, device=hidden_TD.device)  # and one for the padding
    return num_bad.index_add_(0, row_of_token_T, is_bad_T.to(torch.int32))[:-1] > 0
