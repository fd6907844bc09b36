"""What the attention kernels share: the online softmax over a range of paged keys, and how its parts are combined.

Softmax runs in powers of two: logits are scaled by scale * log2(e). Masked logits are -inf, and a running maximum
starts at FLOOR, which is finite: so nothing is ever inf - inf, and a query that saw no key yet has sum 0.

Names: N query heads, K key/value heads, GROUP query heads of one of these, H head size (BLOCK_H: the power of two from
it on), M places of a tile of queries (place = token * GROUP + head of the group), PAGE tokens of a cache block; m, l
and acc the running maximum, sum and weighted values (Milakov and Gimelshein 2018, Dao et al. 2022).
"""

from __future__ import annotations

import triton
import triton.language as tl

FLOOR = tl.constexpr(-1.0e30)


@triton.jit
def tanh(x):
    small = tl.exp2(-2.8853900817779268 * tl.abs(x))  # e^(-2|x|)
    size = (1.0 - small) / (1.0 + small)
    return tl.where(x < 0, -size, size)


@triton.jit
def attend(
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
            s = cap * tanh(s * scale)
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
def combine(
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
