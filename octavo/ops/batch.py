"""A step's tensors from the row table, and the table's advance. R rows and T tokens, padding included; G groups."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from octavo.ops.dispatch import bound


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
    """Fills the last seven from the first six, and advances `computed` past the step's tokens.

        rows    7  2  9  .          counts (and rows) int32 or int64; padding is count 0, at the end
        counts  1  3  1  0
        query_start  0  1  4  5  5      a padded row is empty and has seq_len 0 and block 0
        tokens       7  2  2  2  9  .  .      a padded token has id and position 0, row R and slot -1

    The table: tokens [M, L] int32, computed [M] int64, block_tables [M, B] int32 of each group. A row's tokens are the
    `count` after the `computed` first; token at position p has slot block_table[row, p // block_size] * block_size + p
    % block_size, the column held to the table's width (a state has one place, whatever the position).
    The step: input_ids [T] int32 or int64, positions and row_of_token (an index into the batch) [T] int64, query_start
    [R + 1] int32, seq_lens [R] int32, a group's slots [T] int64 and gathered block table [R, columns] int32, of which
    only the blocks that hold the row's tokens are written (none where it has no columns). T is at least the sum of
    counts, a row occurs once.
    """
    bound.build_batch(
        rows_R,
        counts_R,
        tokens,
        computed,
        block_tables,
        block_size,
        input_ids_T,
        positions_T,
        row_of_token_T,
        query_start,
        seq_lens_R,
        slots,
        gathered,
    )


def append_sampled(rows_S: Tensor, token_ids_S: Tensor, tokens: Tensor, length: Tensor) -> None:
    """tokens[row, length[row]] = id and length[row] += 1 for each row, which occurs once; a row below 0 is padding.

    rows and token_ids int32 or int64; tokens [M, L] int32, length [M] int64, below L where a token comes.
    """
    bound.append_sampled(rows_S, token_ids_S, tokens, length)


def mark_bad_rows(hidden_TD: Tensor, row_of_token_T: Tensor, num_rows: int) -> Tensor:
    """Bool [num_rows]: rows with a token of which some value is not finite. A token whose row is `num_rows` is padding
    and counts for nothing. hidden of any floating dtype, row_of_token int64."""
    return bound.mark_bad_rows(hidden_TD, row_of_token_T, num_rows)
