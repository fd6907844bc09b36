"""Attention of rows of few query tokens over the leading blocks that they share with other rows.

The keys and values of a shared prefix are read once for many rows, whose queries are packed into one tile; the decode
kernel then starts each row's own keys from what was found here:

    group 0: rows 3, 5, 6 share 4 blocks     tile 0: queries of 3, 5 | tile 1: queries of 6, each over splits of 0:64
    group 1: rows 0, 9 share 100 blocks      tile 2: queries of 0, 9, over splits of 0:1600
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from octavo.ops.attention import PrefixGroups
from octavo.ops.triton.attention_tiles import FLOOR, attend
from octavo.ops.triton.attention_work import RECORD, Bounds, DecodeConfig, Heads, PrefillConfig, Workspace, head_block
from octavo.ops.triton.chain import follow, launch_options

MAX_SPLITS = 4  # of one prefix: each adds a read of its part for every row
MIN_CHUNK = 256  # keys of a split at least


@dataclass(frozen=True)
class PrefixWork:
    """The pieces of work of a step's shared prefixes."""

    groups: PrefixGroups
    tiles: torch.Tensor
    max_tiles: int
    tokens: torch.Tensor  # [>= R] int32: keys of each row that lie in a shared prefix, 0 for rows in no group
    splits: torch.Tensor  # [>= R] int32: parts to combine for each row
    bounds: Bounds


@dataclass(frozen=True)
class PrefixParts:
    """What the prefix kernel leaves for the decode kernel; the layouts are described there."""

    out: torch.Tensor
    lse: torch.Tensor
    splits: torch.Tensor
    tokens: int  # places of each row


@triton.jit
def _split(keys, chunk, PAGE: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """How a prefix of so many keys is cut: keys of a split, splits."""
    splits = tl.maximum(tl.minimum((keys + chunk - 1) // chunk, MAX_SPLITS), 1)
    size = (keys // PAGE + splits - 1) // splits * PAGE
    return size, tl.where(size > 0, (keys + size - 1) // tl.maximum(size, 1), 0)


@triton.jit(do_not_specialize=["num_rows", "num_groups"])
def _list_kernel(
    rows,
    group_start,
    blocks,
    tiles,
    prefix_tokens,
    prefix_splits,
    num_rows,
    num_groups,
    TILE_ROWS: tl.constexpr,
    TARGET: tl.constexpr,
    MIN_CHUNK: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    GROUPS: tl.constexpr,
    PLACES: tl.constexpr,
    RECORD: tl.constexpr,
):
    lane = tl.arange(0, BLOCK_G)
    for first in range(0, num_rows, BLOCK_G):
        tl.store(prefix_tokens + first + lane, 0, mask=first + lane < num_rows)
        tl.store(prefix_splits + first + lane, 0, mask=first + lane < num_rows)
    tl.debug_barrier()
    total = 0
    for first in range(0, num_groups, BLOCK_G):
        real = first + lane < num_groups
        members = tl.load(group_start + first + lane + 1, mask=real, other=0)
        members -= tl.load(group_start + first + lane, mask=real, other=0)
        keys = tl.load(blocks + first + lane, mask=real, other=0) * PAGE
        total += tl.sum((members + TILE_ROWS - 1) // TILE_ROWS * keys, 0)
    chunk = tl.maximum((total + TARGET - 1) // TARGET, MIN_CHUNK)
    num_tiles = 0
    for first in range(0, num_groups, BLOCK_G):
        real = first + lane < num_groups
        begin = tl.load(group_start + first + lane, mask=real, other=0)
        members = tl.load(group_start + first + lane + 1, mask=real, other=0) - begin
        keys = tl.load(blocks + first + lane, mask=real, other=0) * PAGE
        size, splits = _split(keys, chunk, PAGE, MAX_SPLITS)
        count = (members + TILE_ROWS - 1) // TILE_ROWS * splits
        at = num_tiles + tl.cumsum(count, 0) - count
        for index in range(tl.max(count, 0)):
            here = index < count
            record = tiles + (1 + at + index) * RECORD
            tile, split = index // tl.maximum(splits, 1), index % tl.maximum(splits, 1)
            tl.store(record, begin + tile * TILE_ROWS, mask=here)
            tl.store(record + 1, tl.minimum(members - tile * TILE_ROWS, TILE_ROWS), mask=here)
            tl.store(record + 2, split, mask=here)
            tl.store(record + 3, split * size, mask=here)
            tl.store(record + 4, tl.minimum((split + 1) * size, keys), mask=here)
        num_tiles += tl.sum(count, 0)
    tl.store(tiles, num_tiles)
    # Each row's share: its place in `rows` lies behind the ends of as many groups as come before its own.
    group = tl.arange(0, GROUPS)
    ends = tl.load(group_start + 1 + group, mask=group < num_groups, other=2147483647)
    num_members = tl.load(group_start + num_groups)
    for first in range(0, num_members, PLACES):
        place = first + tl.arange(0, PLACES)
        here = place < num_members
        mine = tl.sum((ends[None, :] <= place[:, None]).to(tl.int32), 1)
        keys = tl.load(blocks + mine, mask=here, other=0) * PAGE
        size, splits = _split(keys, chunk, PAGE, MAX_SPLITS)
        row = tl.load(rows + place, mask=here, other=0)
        tl.store(prefix_tokens + row, keys, mask=here)
        tl.store(prefix_splits + row, splits, mask=here)


@triton.jit(do_not_specialize=["table_stride", "num_rows"])
def _prefix_kernel(
    q,
    cache,
    block_table,
    query_start,
    rows,
    tiles,
    prefix_out,
    prefix_lse,
    q_stride,
    block_stride,
    value_stride,
    slot_stride,
    head_stride,
    table_stride,
    num_rows,
    scale,
    cap,
    N: tl.constexpr,
    GROUP: tl.constexpr,
    H: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    DECODE_TOKENS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    PRECISION: tl.constexpr,
    RECORD: tl.constexpr,
    CHAIN: tl.constexpr,
):
    follow(CHAIN)
    kv_head = tl.program_id(0)
    tile = tl.program_id(1)
    if tile >= tl.load(tiles):
        return
    record = tiles + (1 + tile) * RECORD
    first = tl.load(record)
    members = tl.load(record + 1)
    split = tl.load(record + 2)
    begin = tl.load(record + 3)
    end = tl.load(record + 4)

    line = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_H)
    member = line // (DECODE_TOKENS * GROUP)
    index = line // GROUP % DECODE_TOKENS  # of the token in its row
    head = kv_head * GROUP + line % GROUP
    row = tl.load(rows + first + member, mask=member < members, other=0)
    first_token = tl.load(query_start + row)
    num_tokens = tl.load(query_start + row + 1) - first_token
    valid = (member < members) & (index < num_tokens) & (num_tokens <= DECODE_TOKENS)
    inner = valid[:, None] & (column < H)[None, :]
    place = ((first_token + index) * q_stride + head * H)[:, None] + column[None, :]
    q_tile = tl.load(q + place, mask=inner, other=0.0)
    k_base = cache + kv_head * head_stride
    v_base = k_base + value_stride
    table_row = block_table + tl.load(rows + first).to(tl.int64) * table_stride
    acc = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    m = tl.full([BLOCK_M], FLOOR, tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)  # noqa: E741
    query_at = tl.zeros([BLOCK_M], tl.int32) + end  # after all of the prefix
    full_end = begin + (end - begin) // BLOCK_N * BLOCK_N
    acc, m, l = attend(  # noqa: E741
        acc,
        m,
        l,
        q_tile,
        query_at,
        begin,
        full_end,
        begin,
        end,
        k_base,
        v_base,
        table_row,
        block_stride,
        slot_stride,
        scale,
        cap,
        0,
        False,
        False,
        HAS_CAP,
        PAGE,
        H,
        BLOCK_N,
        BLOCK_H,
        PRECISION,
    )
    acc, m, l = attend(  # noqa: E741
        acc,
        m,
        l,
        q_tile,
        query_at,
        full_end,
        end,
        begin,
        end,
        k_base,
        v_base,
        table_row,
        block_stride,
        slot_stride,
        scale,
        cap,
        0,
        True,
        False,
        HAS_CAP,
        PAGE,
        H,
        BLOCK_N,
        BLOCK_H,
        PRECISION,
    )
    part = ((split.to(tl.int64) * num_rows + row) * DECODE_TOKENS + index) * N + head
    tl.store(prefix_lse + part, m + tl.log2(l), mask=valid)
    tl.store(prefix_out + part[:, None] * BLOCK_H + column[None, :], acc / l[:, None], mask=valid[:, None])


def _tile_rows(bounds: Bounds, heads: Heads, config: PrefillConfig) -> int:
    return max(1, config.block_m // (bounds.decode_tokens * heads.group))


def list_prefixes(
    groups: PrefixGroups,
    bounds: Bounds,
    heads: Heads,
    page: int,
    decode: DecodeConfig,
    config: PrefillConfig,
    workspace: Workspace,
) -> PrefixWork:
    """Cuts the groups into tiles of queries and splits of keys, and notes how many keys each row need not read again:
    `list_work` takes that as `prefix_tokens_R`."""
    device = groups.rows.device
    bounds = replace(bounds, decode_tokens=min(bounds.decode_tokens, groups.tokens))
    tile_rows = _tile_rows(bounds, heads, config)
    target = max(1, decode.fill // (4 * heads.num_kv_heads))
    most_tiles = -(-len(groups.rows) // tile_rows) + len(groups.blocks)
    max_tiles = min(most_tiles * MAX_SPLITS, most_tiles + target)
    name = (heads.num_kv_heads, heads.group, page, decode, config)
    tiles = workspace.take(("prefix tiles", *name), (max_tiles + 1) * RECORD, torch.int32, device)
    tokens = workspace.take(("prefix tokens", *name), bounds.rows, torch.int32, device)
    splits = workspace.take(("prefix splits", *name), bounds.rows, torch.int32, device)
    num_groups = triton.next_power_of_2(max(2, len(groups.blocks)))
    _list_kernel[(1,)](
        groups.rows,
        groups.group_start,
        groups.blocks,
        tiles,
        tokens,
        splits,
        bounds.rows,
        len(groups.blocks),
        TILE_ROWS=tile_rows,
        TARGET=target,
        MIN_CHUNK=MIN_CHUNK,
        MAX_SPLITS=MAX_SPLITS,
        PAGE=page,
        BLOCK_G=512,
        GROUPS=num_groups,
        PLACES=max(16, 8192 // num_groups),
        RECORD=RECORD,
        num_warps=4,
    )
    return PrefixWork(groups, tiles, max_tiles, tokens, splits, bounds)


def prefix_attention(
    q_TNH: torch.Tensor,
    cache: torch.Tensor,
    block_table_RB: torch.Tensor,
    query_start: torch.Tensor,
    work: PrefixWork,
    heads: Heads,
    config: PrefillConfig,
    workspace: Workspace,
) -> PrefixParts:
    """What the rows of the groups see in their shared blocks; `decode_attention` adds it to the rest. Sinks are left
    to that, and layers with a window are not served."""
    device, bounds = q_TNH.device, work.bounds
    block_h = head_block(heads.head_dim)
    places = MAX_SPLITS * bounds.rows * bounds.decode_tokens * heads.num_heads
    out = workspace.take(("prefix parts", block_h), places * block_h, torch.float32, device)
    lse = workspace.take(("prefix sums", block_h), places, torch.float32, device)
    scale, cap = heads.logits()
    _prefix_kernel[(heads.num_kv_heads, work.max_tiles)](
        q_TNH,
        cache,
        block_table_RB,
        query_start,
        work.groups.rows,
        work.tiles,
        out,
        lse,
        q_TNH.stride(0),
        cache.stride(0),
        cache.stride(1),
        cache.stride(2),
        cache.stride(3),
        block_table_RB.stride(0),
        bounds.rows,
        scale,
        cap,
        N=heads.num_heads,
        GROUP=heads.group,
        H=heads.head_dim,
        PAGE=cache.shape[2],
        BLOCK_M=max(config.block_m, triton.next_power_of_2(bounds.decode_tokens * heads.group)),
        BLOCK_N=config.block_n,
        BLOCK_H=block_h,
        DECODE_TOKENS=bounds.decode_tokens,
        HAS_CAP=heads.soft_cap is not None,
        PRECISION="ieee",
        RECORD=RECORD,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **launch_options(),
    )
    return PrefixParts(out, lse, work.splits, bounds.decode_tokens)
