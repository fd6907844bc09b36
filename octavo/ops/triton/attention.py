"""Paged attention as Triton kernels: one for rows of few query tokens, one for rows of many, both into one output.

A step's rows are cut into pieces of work on the device, by `list_work`, from query_start and seq_lens alone, so that a
captured graph with padded bounds serves every mixture:

    rows          decode items (row, range of keys)      prefill tiles (row, range of query tokens)
    1 of 1000     0: keys 0:512    1: keys 512:1000      -
    1 of 300      2: keys 0:300                          -
    70 of 400     -                                      0: tokens 64:70   1: tokens 32:64   2: tokens 0:32

The query heads that share a key/value head are packed with the query tokens into the M side of the matrix products:
m = token * group + head. Softmax runs in powers of two: logits are scaled by scale * log2(e). Masked logits are -inf,
and a running maximum starts at FLOOR, which is finite: so nothing is ever inf - inf, and a query that saw no key yet
has sum 0.

Names in the kernels: N query heads, K key/value heads, H head size (BLOCK_H: the power of two above it), PAGE tokens
of a cache block, m / l / acc the running maximum, sum and weighted values of the online softmax (Milakov and
Gimelshein 2018, Dao et al. 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

LOG2E = math.log2(math.e)
RECORD = 16  # int32 places of a decode item or prefill tile; the first record holds their number
LIST_PROGRAMS = 16  # of `list_work`: each finds all offsets and writes its share of the records

FLOOR = tl.constexpr(-1.0e30)

# ---- what the kernels share ------------------------------------------------------------------------------------------


@triton.jit
def _tanh(x):
    small = tl.exp2(-2.8853900817779268 * tl.abs(x))  # e^(-2|x|)
    size = (1.0 - small) / (1.0 + small)
    return tl.where(x < 0, -size, size)


@triton.jit
def _attend(
    acc,
    m,
    l,  # noqa: E741
    q,  # [M, BLOCK_H]
    query_at,  # [M]: positions
    begin,  # keys begin : end go in tiles of BLOCK_N; begin is a multiple of PAGE
    end,
    low,  # keys before `low` and from `high` on are never read
    high,
    k_base,
    v_base,
    table_row,
    block_stride,
    slot_stride,
    scale,  # of the logits, log2(e) included; with a soft cap, scale / cap
    cap,  # soft cap * log2(e)
    window,
    MASKED: tl.constexpr,  # False: every query sees every key of begin : end, and they are whole tiles
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    PAGE: tl.constexpr,
    H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The online softmax over a range of keys. A tile's places in the cache are looked up one tile ahead, so that the
    loads of keys and values wait for nothing."""
    column = tl.arange(0, BLOCK_H)[None, :]
    at = tl.arange(0, BLOCK_N)
    blocks = tl.load(table_row + (begin + at) // PAGE, mask=begin + at < high, other=0)
    for start in range(begin, end, BLOCK_N):
        position = start + at
        if BLOCK_N % PAGE == 0:  # then it is the same in every tile
            inside = at % PAGE
        else:
            inside = position % PAGE
        place = (blocks.to(tl.int64) * block_stride + inside * slot_stride)[:, None] + column
        following = position + BLOCK_N
        if BLOCK_N % PAGE == 0:
            index = (start + BLOCK_N) // PAGE + at // PAGE
        else:
            index = following // PAGE
        blocks = tl.load(table_row + index, mask=following < high, other=0)
        here = (position >= low) & (position < high)
        if MASKED:
            loaded = here[:, None] & (column < H)
            k = tl.load(k_base + place, mask=loaded, other=0.0)
            v = tl.load(v_base + place, mask=loaded, other=0.0)
        elif H != BLOCK_H:
            k = tl.load(k_base + place, mask=column < H, other=0.0)
            v = tl.load(v_base + place, mask=column < H, other=0.0)
        else:
            k = tl.load(k_base + place)
            v = tl.load(v_base + place)
        s = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision=PRECISION)
        if HAS_CAP:
            s = cap * _tanh(s * scale)
        if MASKED:
            seen = here[None, :] & (position[None, :] <= query_at[:, None])
            if HAS_WINDOW:
                seen = seen & (position[None, :] > query_at[:, None] - window)
            s = tl.where(seen, s, float("-inf"))
        if HAS_CAP:
            top = tl.maximum(m, tl.max(s, 1))
            p = tl.exp2(s - top[:, None])
        else:
            top = tl.maximum(m, tl.max(s, 1) * scale)
            p = tl.exp2(s * scale - top[:, None])
        faded = tl.exp2(m - top)
        l = l * faded + tl.sum(p, 1)  # noqa: E741
        acc = acc * faded[:, None]
        acc = tl.dot(p.to(q.dtype), v.to(q.dtype), acc, input_precision=PRECISION)
        m = top
    return acc, m, l


@triton.jit
def _combine(
    parts_out,  # [slots, K, M, BLOCK_H] float32: of each split, weighted values over their sum
    parts_lse,  # [slots, K, M] float32: log2 of the sum
    first_slot,
    num_splits,
    kv_head,
    num_kv_heads,
    valid,  # [M]
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """The splits of one row and head, as one. Four loads are in flight at a time."""
    line = tl.arange(0, BLOCK_M)
    place = line[:, None] * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]
    m = tl.full([BLOCK_M], FLOOR, tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)  # noqa: E741
    acc = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    for start in range(0, num_splits, 4):
        for step in tl.static_range(4):
            split = start + step
            there = valid & (split < num_splits)
            part = ((first_slot + split) * num_kv_heads + kv_head).to(tl.int64) * BLOCK_M
            lse = tl.load(parts_lse + part + line, mask=there, other=float("-inf"), cache_modifier=".cg")
            out = tl.load(parts_out + part * BLOCK_H + place, mask=there[:, None], other=0.0, cache_modifier=".cg")
            top = tl.maximum(m, lse)
            faded, weight = tl.exp2(m - top), tl.exp2(lse - top)
            acc = acc * faded[:, None] + out * weight[:, None]
            l = l * faded + weight  # noqa: E741
            m = top
    return acc / tl.where(l > 0, l, 1.0)[:, None]


# ---- the list of work ------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["num_rows", "window"])
def _list_kernel(
    query_start,
    seq_lens,
    items,
    tiles,
    prefix_tokens,
    num_rows,
    window,
    DECODE_TOKENS: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    TARGET: tl.constexpr,
    MIN_CHUNK: tl.constexpr,
    CHUNK_UNIT: tl.constexpr,
    PAGE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    BLOCK_R: tl.constexpr,
    RECORD: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    lane = tl.arange(0, BLOCK_R)
    total = 0
    for first in range(0, num_rows, BLOCK_R):
        row = first + lane
        real = row < num_rows
        num_queries = tl.load(query_start + row + 1, mask=real, other=0) - tl.load(
            query_start + row, mask=real, other=0
        )
        length = tl.load(seq_lens + row, mask=real, other=0)
        decodes = (num_queries > 0) & (num_queries <= DECODE_TOKENS)
        begin = tl.zeros_like(length)
        if HAS_WINDOW:
            begin = tl.maximum(length - num_queries - window + 1, 0) // PAGE * PAGE
        if HAS_PREFIX:
            begin = tl.maximum(begin, tl.load(prefix_tokens + row, mask=real, other=0))
        total += tl.sum(tl.where(decodes, length - begin, 0), 0)
    share = (total + TARGET - 1) // TARGET
    chunk = tl.maximum((share + CHUNK_UNIT - 1) // CHUNK_UNIT * CHUNK_UNIT, MIN_CHUNK)
    num_items, num_slots, num_tiles = 0, 0, 0
    for first in range(0, num_rows, BLOCK_R):
        row = first + lane
        real = row < num_rows
        query_begin = tl.load(query_start + row, mask=real, other=0)
        num_queries = tl.load(query_start + row + 1, mask=real, other=0) - query_begin
        length = tl.load(seq_lens + row, mask=real, other=0)
        decodes = (num_queries > 0) & (num_queries <= DECODE_TOKENS)
        begin = tl.zeros_like(length)
        if HAS_WINDOW:
            begin = tl.maximum(length - num_queries - window + 1, 0) // PAGE * PAGE
        if HAS_PREFIX:
            begin = tl.maximum(begin, tl.load(prefix_tokens + row, mask=real, other=0))
        # As many splits as chunks fit, then splits of equal size.
        keys = tl.where(decodes, tl.maximum(length - begin, 1), 1)
        splits = (keys + chunk - 1) // chunk
        size = ((keys + splits - 1) // splits + CHUNK_UNIT - 1) // CHUNK_UNIT * CHUNK_UNIT
        splits = tl.where(decodes, (keys + size - 1) // size, 0)
        slots = tl.where(splits > 1, splits, 0)
        item = num_items + tl.cumsum(splits, 0) - splits
        slot = num_slots + tl.cumsum(slots, 0) - slots
        for split in range(program, tl.max(splits, 0), programs):
            here = split < splits
            record = items + (1 + item + split) * RECORD
            key_begin = begin + split * size
            tl.store(record, row, mask=here)
            tl.store(record + 1, query_begin, mask=here)
            tl.store(record + 2, num_queries, mask=here)
            tl.store(record + 3, length - num_queries, mask=here)  # the first query's position
            tl.store(record + 4, key_begin, mask=here)
            tl.store(record + 5, tl.minimum(key_begin + size, length), mask=here)
            tl.store(record + 6, slot, mask=here)
            tl.store(record + 7, splits, mask=here)
            tl.store(record + 8, tl.zeros_like(row) + split, mask=here)
        count = tl.where(num_queries > DECODE_TOKENS, (num_queries + TILE_TOKENS - 1) // TILE_TOKENS, 0)
        tile = num_tiles + tl.cumsum(count, 0) - count
        for index in range(program, tl.max(count, 0), programs):  # a row's last tile has most keys, and goes first
            here = index < count
            record = tiles + (1 + tile + index) * RECORD
            token = (count - 1 - index) * TILE_TOKENS
            tl.store(record, row, mask=here)
            tl.store(record + 1, query_begin + token, mask=here)
            tl.store(record + 2, tl.minimum(num_queries - token, TILE_TOKENS), mask=here)
            tl.store(record + 3, length - num_queries + token, mask=here)
            # The earliest key any of the row's queries may see: what lies before may be gone.
            first_seen = tl.zeros_like(row)
            if HAS_WINDOW:
                first_seen = tl.maximum(length - num_queries - window + 1, 0)
            tl.store(record + 4, first_seen, mask=here)
        num_items += tl.sum(splits, 0)
        num_slots += tl.sum(slots, 0)
        num_tiles += tl.sum(count, 0)
    if program == 0:
        tl.store(items, num_items)
        tl.store(tiles, num_tiles)


# ---- rows of few query tokens ----------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["table_stride", "window", "prefix_splits_stride"])
def _decode_kernel(
    q,
    cache,
    block_table,
    items,
    out,
    sinks,
    parts_out,
    parts_lse,
    arrived,  # [slots, K] int32: splits done, of each row with several; all zeros between launches
    prefix_out,  # [splits, T, N, BLOCK_H] float32: what the shared-prefix kernel found
    prefix_lse,  # [splits, T, N]
    prefix_splits,  # [R] int32: how many splits of it hold something of a row
    q_stride,
    block_stride,
    value_stride,
    slot_stride,
    head_stride,
    table_stride,
    prefix_splits_stride,
    scale,
    cap,
    window,
    N: tl.constexpr,
    GROUP: tl.constexpr,
    H: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    FUSED: tl.constexpr,  # the last split to end combines them all; else _combine_kernel does
    PRECISION: tl.constexpr,
    RECORD: tl.constexpr,
):
    kv_head = tl.program_id(0)
    K: tl.constexpr = N // GROUP
    line = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_H)
    head = kv_head * GROUP + line % GROUP
    k_base = cache + kv_head * head_stride
    v_base = k_base + value_stride
    num_items = tl.load(items)
    for item in range(tl.program_id(1), num_items, tl.num_programs(1)):
        record = items + (1 + item) * RECORD
        row = tl.load(record).to(tl.int64)
        first_token = tl.load(record + 1)
        num_tokens = tl.load(record + 2)
        first_position = tl.load(record + 3)
        key_begin = tl.load(record + 4)
        key_end = tl.load(record + 5)
        first_slot = tl.load(record + 6)
        num_splits = tl.load(record + 7)
        split = tl.load(record + 8)

        valid = line // GROUP < num_tokens
        token = first_token + line // GROUP
        inner = valid[:, None] & (column < H)[None, :]
        q_tile = tl.load(q + (token * q_stride + head * H)[:, None] + column[None, :], mask=inner, other=0.0)
        m = tl.full([BLOCK_M], FLOOR, tl.float32)
        l = tl.zeros([BLOCK_M], tl.float32)  # noqa: E741
        acc = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
        if HAS_SINKS:
            if split == 0:
                m = tl.load(sinks + head, mask=valid, other=0.0).to(tl.float32) * 1.4426950408889634
                l = tl.full([BLOCK_M], 1.0, tl.float32)  # noqa: E741
        if HAS_PREFIX:
            if split == 0:
                for part in range(0, tl.load(prefix_splits + row)):
                    place = part.to(tl.int64) * prefix_splits_stride + token * N + head
                    lse = tl.load(prefix_lse + place, mask=valid, other=float("-inf"))
                    found = tl.load(prefix_out + place[:, None] * BLOCK_H + column[None, :], mask=inner, other=0.0)
                    top = tl.maximum(m, lse)
                    faded, weight = tl.exp2(m - top), tl.exp2(lse - top)
                    acc = acc * faded[:, None] + found * weight[:, None]
                    l = l * faded + weight  # noqa: E741
                    m = top
        low = key_begin
        if HAS_WINDOW:
            low = tl.maximum(key_begin, first_position - window + 1)
        acc, m, l = _attend(  # noqa: E741
            acc,
            m,
            l,
            q_tile,
            first_position + line // GROUP,
            key_begin,
            key_end,
            low,
            key_end,
            k_base,
            v_base,
            block_table + row * table_stride,
            block_stride,
            slot_stride,
            scale,
            cap,
            window,
            True,
            HAS_WINDOW,
            HAS_CAP,
            PAGE,
            H,
            BLOCK_N,
            BLOCK_H,
            PRECISION,
        )
        found = acc / tl.where(l > 0, l, 1.0)[:, None]
        to = out + (token * N + head)[:, None] * H + column[None, :]
        if num_splits == 1:
            tl.store(to, found.to(out.dtype.element_ty), mask=inner)
        else:
            part = ((first_slot + split) * K + kv_head).to(tl.int64) * BLOCK_M
            tl.store(parts_lse + part + line, m + tl.log2(tl.where(l > 0, l, 1.0)) + tl.where(l > 0, 0.0, FLOOR))
            tl.store(parts_out + (part + line)[:, None] * BLOCK_H + column[None, :], found, mask=valid[:, None])
            if FUSED:
                tl.debug_barrier()  # the whole program's stores come before the count
                done = tl.atomic_add(arrived + first_slot * K + kv_head, 1, sem="acq_rel")
                if done == num_splits - 1:
                    tl.store(arrived + first_slot * K + kv_head, 0)
                    whole = _combine(
                        parts_out, parts_lse, first_slot, num_splits, kv_head, K, valid, BLOCK_M, BLOCK_H
                    )
                    tl.store(to, whole.to(out.dtype.element_ty), mask=inner)


@triton.jit
def _combine_kernel(
    items,
    out,
    parts_out,
    parts_lse,
    N: tl.constexpr,
    GROUP: tl.constexpr,
    H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    RECORD: tl.constexpr,
):
    kv_head = tl.program_id(0)
    line = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_H)
    head = kv_head * GROUP + line % GROUP
    num_items = tl.load(items)
    for item in range(tl.program_id(1), num_items, tl.num_programs(1)):
        record = items + (1 + item) * RECORD
        num_splits = tl.load(record + 7)
        if (num_splits > 1) & (tl.load(record + 8) == 0):
            valid = line // GROUP < tl.load(record + 2)
            token = tl.load(record + 1) + line // GROUP
            whole = _combine(
                parts_out, parts_lse, tl.load(record + 6), num_splits, kv_head, N // GROUP, valid, BLOCK_M, BLOCK_H
            )
            inner = valid[:, None] & (column < H)[None, :]
            tl.store(
                out + (token * N + head)[:, None] * H + column[None, :], whole.to(out.dtype.element_ty), mask=inner
            )


# ---- rows of many query tokens ---------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["table_stride", "window"])
def _prefill_kernel(
    q,
    cache,
    block_table,
    tiles,
    out,
    sinks,
    q_stride,
    block_stride,
    value_stride,
    slot_stride,
    head_stride,
    table_stride,
    scale,
    cap,
    window,
    N: tl.constexpr,
    GROUP: tl.constexpr,
    H: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
    RECORD: tl.constexpr,
):
    kv_head = tl.program_id(0)
    tile = tl.program_id(1)
    if tile >= tl.load(tiles):
        return
    record = tiles + (1 + tile) * RECORD
    row = tl.load(record).to(tl.int64)
    first_token = tl.load(record + 1)
    num_tokens = tl.load(record + 2)
    first_position = tl.load(record + 3)
    first_seen = tl.load(record + 4)

    line = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_H)
    head = kv_head * GROUP + line % GROUP
    valid = line // GROUP < num_tokens
    token = first_token + line // GROUP
    query_at = first_position + line // GROUP
    inner = valid[:, None] & (column < H)[None, :]
    q_tile = tl.load(q + (token * q_stride + head * H)[:, None] + column[None, :], mask=inner, other=0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    if HAS_SINKS:
        m = tl.load(sinks + head, mask=valid, other=0.0).to(tl.float32) * 1.4426950408889634
        l = tl.full([BLOCK_M], 1.0, tl.float32)  # noqa: E741
    else:
        m = tl.full([BLOCK_M], FLOOR, tl.float32)
        l = tl.zeros([BLOCK_M], tl.float32)  # noqa: E741
    k_base = cache + kv_head * head_stride
    v_base = k_base + value_stride
    table_row = block_table + row * table_stride

    #            begin        full_begin          full_end     high
    # keys         | some queries |  all queries see  | some queries |
    high = first_position + num_tokens
    begin = 0
    if HAS_WINDOW:
        begin = tl.maximum(first_position - window + 1, 0) // PAGE * PAGE
    full_end = begin + (first_position + 1 - begin) // BLOCK_N * BLOCK_N
    full_begin = begin
    if HAS_WINDOW:
        partly = tl.maximum(high - window - begin, 0)
        full_begin = tl.minimum(begin + (partly + BLOCK_N - 1) // BLOCK_N * BLOCK_N, full_end)
        acc, m, l = _attend(  # noqa: E741
            acc,
            m,
            l,
            q_tile,
            query_at,
            begin,
            full_begin,
            first_seen,
            high,
            k_base,
            v_base,
            table_row,
            block_stride,
            slot_stride,
            scale,
            cap,
            window,
            True,
            HAS_WINDOW,
            HAS_CAP,
            PAGE,
            H,
            BLOCK_N,
            BLOCK_H,
            PRECISION,
        )
    acc, m, l = _attend(  # noqa: E741
        acc,
        m,
        l,
        q_tile,
        query_at,
        full_begin,
        full_end,
        first_seen,
        high,
        k_base,
        v_base,
        table_row,
        block_stride,
        slot_stride,
        scale,
        cap,
        window,
        False,
        HAS_WINDOW,
        HAS_CAP,
        PAGE,
        H,
        BLOCK_N,
        BLOCK_H,
        PRECISION,
    )
    acc, m, l = _attend(  # noqa: E741
        acc,
        m,
        l,
        q_tile,
        query_at,
        full_end,
        high,
        first_seen,
        high,
        k_base,
        v_base,
        table_row,
        block_stride,
        slot_stride,
        scale,
        cap,
        window,
        True,
        HAS_WINDOW,
        HAS_CAP,
        PAGE,
        H,
        BLOCK_N,
        BLOCK_H,
        PRECISION,
    )
    found = acc / tl.where(l > 0, l, 1.0)[:, None]
    tl.store(out + (token * N + head)[:, None] * H + column[None, :], found.to(out.dtype.element_ty), mask=inner)


# ---- on the host -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecodeConfig:
    """How the decode kernel runs. `fill` programs are aimed at: where there are fewer rows than that, they are split,
    but into no fewer than `min_chunk` keys each. More than `max_programs` are never launched: programs loop."""

    block_n: int = 64
    num_warps: int = 4
    num_stages: int = 3
    fill: int = 1056
    min_chunk: int = 128
    max_programs: int = 2112
    fused: bool = True


@dataclass(frozen=True)
class PrefillConfig:
    """How the prefill kernel runs: `block_m` places of (query token, head of the group) by `block_n` keys a tile."""

    block_m: int = 128
    block_n: int = 64
    num_warps: int = 4
    num_stages: int = 2


def decode_config(head_dim: int, dtype: torch.dtype, num_processors: int = 132) -> DecodeConfig:
    line = triton.next_power_of_2(head_dim) * dtype.itemsize  # bytes of a key
    block_n = max(16, min(64, 16384 // line))
    return DecodeConfig(block_n=block_n, fill=8 * num_processors, max_programs=16 * num_processors)


def prefill_config(head_dim: int, dtype: torch.dtype) -> PrefillConfig:
    line = triton.next_power_of_2(head_dim) * dtype.itemsize
    if dtype == torch.float32:  # products without matrix units: small tiles, or registers run out
        return PrefillConfig(block_m=32, block_n=32 if line <= 512 else 16, num_warps=4, num_stages=1)
    if line > 256:
        return PrefillConfig(block_n=32, num_warps=8)
    return PrefillConfig()


class Workspace:
    """Buffers that stay where they are, as captured graphs demand: each is made when its name and size are first asked
    for, zeroed, and kept. A first call must not happen inside a capture, whose zeroing would not run."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[object, ...], torch.Tensor] = {}

    def take(self, name: object, size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A flat buffer of at least `size` places."""
        size = triton.next_power_of_2(size)
        key = (name, size, dtype, device)
        if key not in self._buffers:
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(f"attention buffer {name!r} of {size} places: run this step's shape before capturing")
            self._buffers[key] = torch.zeros(size, dtype=dtype, device=device)
        return self._buffers[key]

    @property
    def num_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers.values())


@dataclass(frozen=True)
class Heads:
    """One layer's attention, as far as kernels care."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    soft_cap: float | None = None
    sinks: torch.Tensor | None = None  # [N], logits

    @property
    def group(self) -> int:
        return self.num_heads // self.num_kv_heads

    def logits(self) -> tuple[float, float]:
        """scale and cap as the kernels take them."""
        if self.soft_cap is None:
            return self.scale * LOG2E, 0.0
        return self.scale / self.soft_cap, self.soft_cap * LOG2E


@dataclass(frozen=True)
class Bounds:
    """Of a step, or of all steps that a captured graph is to serve."""

    rows: int
    decode_tokens: int  # rows of more query tokens go to the prefill kernel
    prefill_rows: int  # at most
    prefill_tokens: int  # of prefill rows together, at most


@dataclass
class Work:
    """A step's list of work, on the device, and how long it can be."""

    items: torch.Tensor
    tiles: torch.Tensor
    max_items: int
    max_tiles: int
    target: int
    bounds: Bounds
    prefix_tokens: torch.Tensor | None = None


def tile_tokens(heads: Heads, config: PrefillConfig) -> int:
    return max(1, config.block_m // heads.group)


def list_work(
    query_start: torch.Tensor,
    seq_lens_R: torch.Tensor,
    bounds: Bounds,
    heads: Heads,
    page: int,
    decode: DecodeConfig,
    prefill: PrefillConfig,
    workspace: Workspace,
    prefix_tokens_R: torch.Tensor | None = None,
) -> Work:
    """Cuts a step's rows into decode items and prefill tiles. The result depends on lengths, the window and the number
    of heads alone: it serves every layer that has these."""
    tokens = tile_tokens(heads, prefill)
    target = max(1, decode.fill // heads.num_kv_heads)
    max_items = bounds.rows + target
    max_tiles = -(-bounds.prefill_tokens // tokens) + bounds.prefill_rows if bounds.prefill_rows else 0
    device = query_start.device
    name = (heads.window, heads.num_kv_heads, heads.group)
    items = workspace.take(("items", *name), (max_items + 1) * RECORD, torch.int32, device)
    tiles = workspace.take(("tiles", *name), (max_tiles + 1) * RECORD, torch.int32, device)
    _list_kernel[(LIST_PROGRAMS,)](
        query_start,
        seq_lens_R,
        items,
        tiles,
        prefix_tokens_R,
        bounds.rows,
        heads.window or 0,
        DECODE_TOKENS=bounds.decode_tokens,
        TILE_TOKENS=tokens,
        TARGET=target,
        MIN_CHUNK=-(-decode.min_chunk // decode.block_n) * decode.block_n,
        CHUNK_UNIT=math.lcm(decode.block_n, page),
        PAGE=page,
        HAS_WINDOW=heads.window is not None,
        HAS_PREFIX=prefix_tokens_R is not None,
        BLOCK_R=1024,
        RECORD=RECORD,
        num_warps=4,
    )
    return Work(items, tiles, max_items, max_tiles, target, bounds, prefix_tokens_R)


@dataclass
class PrefixParts:
    """What the shared-prefix kernel leaves for the decode kernel."""

    out: torch.Tensor
    lse: torch.Tensor
    splits_R: torch.Tensor
    stride: int  # T * N


def decode_attention(
    q_TNH: torch.Tensor,
    cache: torch.Tensor,
    block_table_RB: torch.Tensor,
    work: Work,
    out_TNH: torch.Tensor,
    heads: Heads,
    config: DecodeConfig,
    workspace: Workspace,
    prefix: PrefixParts | None = None,
) -> None:
    """The decode items of `work`. Other places of `out_TNH` stay as they are."""
    device = q_TNH.device
    num_kv_heads = heads.num_kv_heads
    block_m = max(16, triton.next_power_of_2(work.bounds.decode_tokens * heads.group))
    block_h = triton.next_power_of_2(heads.head_dim)
    slots = 2 * work.target
    name = (num_kv_heads, block_m, block_h)
    parts_out = workspace.take(("parts", *name), slots * num_kv_heads * block_m * block_h, torch.float32, device)
    parts_lse = workspace.take(("sums", *name), slots * num_kv_heads * block_m, torch.float32, device)
    arrived = workspace.take(("arrived", num_kv_heads), slots * num_kv_heads, torch.int32, device)
    scale, cap = heads.logits()
    grid = (num_kv_heads, min(work.max_items, -(-config.max_programs // num_kv_heads)))
    _decode_kernel[grid](
        q_TNH,
        cache,
        block_table_RB,
        work.items,
        out_TNH,
        heads.sinks,
        parts_out,
        parts_lse,
        arrived,
        prefix.out if prefix else None,
        prefix.lse if prefix else None,
        prefix.splits_R if prefix else None,
        q_TNH.stride(0),
        cache.stride(0),
        cache.stride(1),
        cache.stride(2),
        cache.stride(3),
        block_table_RB.stride(0),
        prefix.stride if prefix else 0,
        scale,
        cap,
        heads.window or 0,
        N=heads.num_heads,
        GROUP=heads.group,
        H=heads.head_dim,
        PAGE=cache.shape[2],
        BLOCK_M=block_m,
        BLOCK_N=config.block_n,
        BLOCK_H=block_h,
        HAS_WINDOW=heads.window is not None,
        HAS_CAP=heads.soft_cap is not None,
        HAS_SINKS=heads.sinks is not None,
        HAS_PREFIX=prefix is not None,
        FUSED=config.fused,
        PRECISION="ieee",
        RECORD=RECORD,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if not config.fused:
        _combine_kernel[grid](
            work.items,
            out_TNH,
            parts_out,
            parts_lse,
            N=heads.num_heads,
            GROUP=heads.group,
            H=heads.head_dim,
            BLOCK_M=block_m,
            BLOCK_H=block_h,
            RECORD=RECORD,
            num_warps=4,
        )


def prefill_attention(
    q_TNH: torch.Tensor,
    cache: torch.Tensor,
    block_table_RB: torch.Tensor,
    work: Work,
    out_TNH: torch.Tensor,
    heads: Heads,
    config: PrefillConfig,
) -> None:
    """The prefill tiles of `work`. Other places of `out_TNH` stay as they are."""
    if work.max_tiles == 0:
        return
    scale, cap = heads.logits()
    _prefill_kernel[(heads.num_kv_heads, work.max_tiles)](
        q_TNH,
        cache,
        block_table_RB,
        work.tiles,
        out_TNH,
        heads.sinks,
        q_TNH.stride(0),
        cache.stride(0),
        cache.stride(1),
        cache.stride(2),
        cache.stride(3),
        block_table_RB.stride(0),
        scale,
        cap,
        heads.window or 0,
        N=heads.num_heads,
        GROUP=heads.group,
        H=heads.head_dim,
        PAGE=cache.shape[2],
        BLOCK_M=max(config.block_m, triton.next_power_of_2(heads.group)),
        BLOCK_N=config.block_n,
        BLOCK_H=triton.next_power_of_2(heads.head_dim),
        HAS_WINDOW=heads.window is not None,
        HAS_CAP=heads.soft_cap is not None,
        HAS_SINKS=heads.sinks is not None,
        PRECISION="ieee",
        RECORD=RECORD,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


DECODE_TOKENS = 4  # query tokens of a row that the decode kernel takes, unless told otherwise


def paged_attention(
    q_TNH: torch.Tensor,
    cache: torch.Tensor,
    block_table_RB: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens_R: torch.Tensor,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """As octavo/ops/attention.py says; `sinks` [N] are logits that take part in the softmax of every query, without
    values. Allocates its buffers: backends keep theirs."""
    num_tokens, num_heads, head_dim = q_TNH.shape
    heads = Heads(num_heads, cache.shape[3], head_dim, scale, window, soft_cap, sinks)
    decode, prefill = decode_config(head_dim, q_TNH.dtype), prefill_config(head_dim, q_TNH.dtype)
    rows = len(seq_lens_R)
    bounds = Bounds(rows, DECODE_TOKENS, min(rows, num_tokens // (DECODE_TOKENS + 1)), num_tokens)
    workspace = Workspace()
    work = list_work(query_start, seq_lens_R, bounds, heads, cache.shape[2], decode, prefill, workspace)
    out = torch.empty(q_TNH.shape, dtype=q_TNH.dtype, device=q_TNH.device)
    decode_attention(q_TNH, cache, block_table_RB, work, out, heads, decode, workspace)
    prefill_attention(q_TNH, cache, block_table_RB, work, out, heads, prefill)
    return out
