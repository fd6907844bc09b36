"""Keys and values of long rows, copied into pages as wide as a tile of FlashAttention-4's.

It loads such pages by the copy engine, and pages of 16 tokens line by line. A copy reads and writes each key once; a
row's attention reads its keys once for every 32 of the row's query tokens or so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.ops.triton.attention_rows import LongRows
from octavo.ops.triton.attention_work import Workspace

WIDE = 128  # tokens of a page


@dataclass(frozen=True)
class WidePages:
    """Of P rows, one after the other; of pages that have tokens, what lies past a row's end is zeros."""

    keys: torch.Tensor  # [pages, WIDE, K, H]
    values: torch.Tensor  # likewise
    table: torch.Tensor  # [P, W] int32


@triton.jit(do_not_specialize=["num_rows", "width"])
def _list_kernel(seq_lens, table, num_rows, width, WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_B: tl.constexpr):
    """One program a row."""
    place = tl.program_id(0)
    row = tl.arange(0, BLOCK_R)
    pages = (tl.load(seq_lens + row, mask=row < num_rows, other=0) + WIDE - 1) // WIDE
    first = tl.sum(tl.where(row < place, pages, 0), 0)
    for start in range(0, width, BLOCK_B):
        column = start + tl.arange(0, BLOCK_B)
        its = tl.sum(tl.where(row == place, pages, 0), 0)
        tl.store(table + place * width + column, tl.where(column < its, first + column, 0), mask=column < width)


@triton.jit(do_not_specialize=["block_width", "width"])
def _copy_kernel(
    cache,
    block_table,
    seq_lens,
    table,
    keys,
    values,
    block_stride,
    value_stride,
    block_width,
    width,
    LINE: tl.constexpr,  # K * H
    PAGE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program copies a block of the cache, in pieces of BLOCK values, or writes zeros in its place."""
    page, place = tl.program_id(0), tl.program_id(1)
    length = tl.load(seq_lens + place)
    token = page * PAGE
    if token < (length + WIDE - 1) // WIDE * WIDE:
        block = tl.load(block_table + place * block_width + page, mask=token < length, other=0)
        wide = tl.load(table + place * width + token // WIDE)
        source = cache + block.to(tl.int64) * block_stride
        to = (wide.to(tl.int64) * WIDE + token % WIDE) * LINE
        for start in tl.static_range(0, PAGE * LINE, BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < PAGE * LINE
            known = inside & (token + at // LINE < length)
            key = tl.load(source + at, mask=known, other=0.0)
            value = tl.load(source + value_stride + at, mask=known, other=0.0)
            tl.store(keys + to + at, key, mask=inside)
            tl.store(values + to + at, value, mask=inside)


def room_for_pages(num_tokens: int, cache: torch.Tensor, workspace: Workspace) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values, each [pages, WIDE, K, H], of `num_tokens` at most, for all layers like `cache`'s in turn."""
    shape = (triton.cdiv(num_tokens, WIDE), WIDE, *cache.shape[3:])
    keys, values = (
        workspace.take((name, *shape), math.prod(shape), cache.dtype, cache.device)[: math.prod(shape)].view(shape)
        for name in ("wide keys", "wide values")
    )
    return keys, values


def list_pages(rows: LongRows, num_tokens: int, cache: torch.Tensor, workspace: Workspace) -> WidePages:
    """Where the rows' tokens will be, which are `num_tokens` at most, each row's rounded up to whole pages."""
    places, page = len(rows.seq_lens), cache.shape[2]
    width = triton.cdiv(rows.block_table.shape[1] * page, WIDE)
    name = ("wide table", places, width)
    table = workspace.take(name, places * width, torch.int32, cache.device)[: places * width].view(places, width)
    _list_kernel[(places,)](
        rows.seq_lens,
        table,
        places,
        width,
        WIDE=WIDE,
        BLOCK_R=triton.next_power_of_2(places),
        BLOCK_B=256,
        num_warps=4,
    )
    return WidePages(*room_for_pages(num_tokens, cache, workspace), table)


def copy_pages(cache: torch.Tensor, rows: LongRows, pages: WidePages) -> None:
    """One layer's. `cache` is [num_blocks, 2, page, K, H], strided by block; `page` divides WIDE."""
    page, line = cache.shape[2], cache.shape[3] * cache.shape[4]
    blocks = pages.table.shape[1] * (WIDE // page)
    _copy_kernel[(blocks, len(rows.seq_lens))](
        cache,
        rows.block_table,
        rows.seq_lens,
        pages.table,
        pages.keys,
        pages.values,
        cache.stride(0),
        cache.stride(1),
        rows.block_table.shape[1],
        pages.table.shape[1],
        LINE=line,
        PAGE=page,
        WIDE=WIDE,
        BLOCK=min(8192, triton.next_power_of_2(page * line)),
        num_warps=8,
    )
