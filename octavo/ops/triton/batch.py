"""A step's tensors in Triton: one kernel, a program a row. What a program reads of the table it alone advances."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256  # tokens or columns at once


@triton.jit(do_not_specialize=["num_rows", "num_tokens"])
def _build_batch(
    rows_ptr,
    counts_ptr,
    tokens_ptr,
    tokens_stride,
    computed_ptr,
    table_ptrs,
    table_strides,
    table_widths,
    input_ids_ptr,
    positions_ptr,
    row_of_token_ptr,
    query_start_ptr,
    seq_lens_ptr,
    slot_ptrs,
    gathered_ptrs,
    gathered_strides,
    gathered_widths,
    num_rows,
    num_tokens,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program r < R fills the row's places; program R those of padded tokens."""
    place = tl.program_id(0)
    other = tl.arange(0, ROWS)
    before = tl.load(counts_ptr + other, mask=other < tl.minimum(place, num_rows), other=0).to(tl.int32)
    start = tl.sum(before, 0)
    tl.store(query_start_ptr + place, start)
    inside = tl.arange(0, BLOCK)
    if place == num_rows:
        for first in range(start, num_tokens, BLOCK):
            at = first + inside
            is_token = at < num_tokens
            zeros = tl.zeros([BLOCK], tl.int64)
            tl.store(input_ids_ptr + at, zeros.to(input_ids_ptr.dtype.element_ty), mask=is_token)
            tl.store(positions_ptr + at, zeros, mask=is_token)
            tl.store(row_of_token_ptr + at, zeros + num_rows, mask=is_token)
            for group in tl.static_range(len(table_ptrs)):
                tl.store(slot_ptrs[group] + at, zeros - 1, mask=is_token)
    else:
        count = tl.load(counts_ptr + place).to(tl.int32)
        if count == 0:
            tl.store(seq_lens_ptr + place, 0)
            for group in tl.static_range(len(table_ptrs)):
                gathered_ptr = gathered_ptrs[group] + place.to(tl.int64) * gathered_strides[group]
                tl.store(gathered_ptr, 0, mask=gathered_widths[group] > 0)
        else:
            row = tl.load(rows_ptr + place).to(tl.int64)
            known = tl.load(computed_ptr + row)
            seq_len = known + count
            tl.store(computed_ptr + row, seq_len)
            tl.store(seq_lens_ptr + place, seq_len.to(tl.int32))
            for first in range(0, count, BLOCK):
                at = first + inside
                is_token = at < count
                position = known + at
                token_id = tl.load(tokens_ptr + row * tokens_stride + position, mask=is_token, other=0)
                tl.store(input_ids_ptr + start + at, token_id.to(input_ids_ptr.dtype.element_ty), mask=is_token)
                tl.store(positions_ptr + start + at, position, mask=is_token)
                tl.store(row_of_token_ptr + start + at, tl.zeros([BLOCK], tl.int64) + place, mask=is_token)
                for group in tl.static_range(len(table_ptrs)):
                    column = tl.minimum(position // BLOCK_SIZE, table_widths[group] - 1)
                    table_ptr = table_ptrs[group] + row * table_strides[group]
                    block = tl.load(table_ptr + column, mask=is_token, other=0).to(tl.int64)
                    slot = block * BLOCK_SIZE + position % BLOCK_SIZE
                    tl.store(slot_ptrs[group] + start + at, slot, mask=is_token)
            for group in tl.static_range(len(table_ptrs)):
                num_blocks = tl.cdiv(seq_len, BLOCK_SIZE).to(tl.int32)
                num_blocks = tl.minimum(num_blocks, tl.minimum(gathered_widths[group], table_widths[group]))
                table_ptr = table_ptrs[group] + row * table_strides[group]
                gathered_ptr = gathered_ptrs[group] + place.to(tl.int64) * gathered_strides[group]
                for first in range(0, num_blocks, BLOCK):
                    column = first + inside
                    block = tl.load(table_ptr + column, mask=column < num_blocks, other=0)
                    tl.store(gathered_ptr + column, block, mask=column < num_blocks)


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["rows_ptr", "ids_ptr"])
def _append_sampled(rows_ptr, ids_ptr, tokens_ptr, tokens_stride, length_ptr, num_rows, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows_ptr + place, mask=place < num_rows, other=-1).to(tl.int64)
    is_real = row >= 0
    token_id = tl.load(ids_ptr + place, mask=is_real, other=0)
    length = tl.load(length_ptr + row, mask=is_real, other=0)
    tl.store(tokens_ptr + row * tokens_stride + length, token_id.to(tokens_ptr.dtype.element_ty), mask=is_real)
    tl.store(length_ptr + row, length + 1, mask=is_real)


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
    num_rows = rows_R.shape[0]
    _build_batch[(num_rows + 1,)](
        rows_R,
        counts_R,
        tokens,
        tokens.stride(0),
        computed,
        tuple(block_tables),
        tuple(table.stride(0) for table in block_tables),
        tuple(table.shape[1] for table in block_tables),
        input_ids_T,
        positions_T,
        row_of_token_T,
        query_start,
        seq_lens_R,
        tuple(slots),
        tuple(gathered),
        tuple(table.stride(0) for table in gathered),
        tuple(table.shape[1] for table in gathered),
        num_rows,
        input_ids_T.shape[0],
        BLOCK_SIZE=block_size,
        ROWS=triton.next_power_of_2(num_rows),
        BLOCK=BLOCK,
        num_warps=4,
    )


def append_sampled(rows_S: Tensor, token_ids_S: Tensor, tokens: Tensor, length: Tensor) -> None:
    num_rows = rows_S.shape[0]
    if num_rows:
        grid = (triton.cdiv(num_rows, BLOCK),)
        _append_sampled[grid](rows_S, token_ids_S, tokens, tokens.stride(0), length, num_rows, BLOCK=BLOCK, num_warps=2)
