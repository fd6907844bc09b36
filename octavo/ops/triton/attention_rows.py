"""The long rows of a step, moved together, for attention kernels that take whole rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.ops.triton.attention_work import Bounds, Workspace


@dataclass(frozen=True)
class LongRows:
    """P rows: from the first to the last of more than `decode_tokens` tokens, then padding without tokens."""

    query_start: torch.Tensor  # [P + 1] int32, into the step's tokens
    seq_lens: torch.Tensor  # [P] int32
    block_table: torch.Tensor  # [P, B] int32


@triton.jit(do_not_specialize=["num_rows", "table_stride", "width"])
def _gather_kernel(
    query_start,
    seq_lens,
    block_table,
    long_start,
    long_lens,
    long_table,
    num_rows,
    table_stride,
    width,
    DECODE_TOKENS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """One program a row, and one more for the end of the last."""
    first, last = num_rows, -1
    for start in range(0, num_rows, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        real = row < num_rows
        tokens = tl.load(query_start + row + 1, mask=real, other=0) - tl.load(query_start + row, mask=real, other=0)
        first = tl.minimum(first, tl.min(tl.where(tokens > DECODE_TOKENS, row, num_rows), 0))
        last = tl.maximum(last, tl.max(tl.where(tokens > DECODE_TOKENS, row, -1), 0))
    place = tl.program_id(0)
    taken = tl.minimum(first + place, last + 1)  # past the last long row: its end
    tl.store(long_start + place, tl.load(query_start + taken))
    if place < tl.num_programs(0) - 1:
        is_row = first + place <= last
        tl.store(long_lens + place, tl.load(seq_lens + taken, mask=is_row, other=0))
        if is_row:
            for start in range(0, width, BLOCK_B):
                column = start + tl.arange(0, BLOCK_B)
                blocks = tl.load(block_table + taken.to(tl.int64) * table_stride + column, mask=column < width)
                tl.store(long_table + place * width + column, blocks, mask=column < width)


def gather_long_rows(
    query_start: torch.Tensor,
    seq_lens_R: torch.Tensor,
    block_table_RB: torch.Tensor,
    bounds: Bounds,
    workspace: Workspace,
    name: object,
) -> LongRows:
    """P is `bounds.prefill_rows`; `name` keeps the buffers of different block tables apart."""
    device, places, width = query_start.device, bounds.prefill_rows, block_table_RB.shape[1]
    long_start = workspace.take(("long start", name), places + 1, torch.int32, device)[: places + 1]
    long_lens = workspace.take(("long lengths", name), places, torch.int32, device)[:places]
    long_table = workspace.take(("long table", name), places * width, torch.int32, device)[: places * width]
    _gather_kernel[(places + 1,)](
        query_start,
        seq_lens_R,
        block_table_RB,
        long_start,
        long_lens,
        long_table,
        bounds.rows,
        block_table_RB.stride(0),
        width,
        DECODE_TOKENS=bounds.decode_tokens,
        BLOCK_R=1024,
        BLOCK_B=1024,
        num_warps=4,
    )
    return LongRows(long_start, long_lens, long_table.view(places, width))
