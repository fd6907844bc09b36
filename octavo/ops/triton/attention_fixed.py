"""Attention whose result for a query does not depend on the step it is computed in: for batch_invariant.

A program has a tile of one row's query tokens, few or many, and goes over the keys that they see in tiles cut at
multiples of BLOCK_N from position 0, with one code for all of them. The decode kernel divides keys by what else is to
be done, the prefill kernel begins a window where its first query does and has other code where all queries see a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.ops.triton.attention_tiles import FLOOR, attend
from octavo.ops.triton.attention_work import RECORD, DeviceLimits, Heads, Work, head_block


@dataclass(frozen=True)
class FixedConfig:
    """`block_m` places of (query token, head of the group) by `block_n` keys a tile."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def fixed_config(head_dim: int, dtype: torch.dtype, limits: DeviceLimits) -> FixedConfig:
    """By the layer and the device alone."""
    line = head_block(head_dim) * dtype.itemsize
    if dtype == torch.float32:
        return FixedConfig(16, 32 if line <= 512 else 16, 4, 1)
    block_m, block_n = 64, 64 if line <= 256 else 32
    stages = (limits.shared_bytes // line - block_m) // (2 * block_n)
    return FixedConfig(block_m, block_n, 4, max(1, min(3, stages)))


@triton.jit(do_not_specialize=["table_stride", "window"])
def _fixed_kernel(
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
    begin = 0
    if HAS_WINDOW:
        begin = tl.maximum(first_position - window + 1, 0) // BLOCK_N * BLOCK_N
    high = first_position + num_tokens
    acc, m, l = attend(  # noqa: E741
        acc,
        m,
        l,
        q_tile,
        query_at,
        begin,
        high,
        first_seen,
        high,
        k_base,
        k_base + value_stride,
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
        "ieee",
    )
    found = acc / tl.where(l > 0, l, 1.0)[:, None]
    tl.store(out + (token * N + head)[:, None] * H + column[None, :], found.to(out.dtype.element_ty), mask=inner)


def fixed_attention(
    q_TNH: torch.Tensor,
    cache: torch.Tensor,
    block_table_RB: torch.Tensor,
    work: Work,
    out_TNH: torch.Tensor,
    heads: Heads,
    config: FixedConfig,
) -> None:
    """The tiles of `work`, which holds every row (its bounds have no decode tokens)."""
    scale, cap = heads.logits()
    _fixed_kernel[(heads.num_kv_heads, work.max_tiles)](
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
        BLOCK_H=head_block(heads.head_dim),
        HAS_WINDOW=heads.window is not None,
        HAS_CAP=heads.soft_cap is not None,
        HAS_SINKS=heads.sinks is not None,
        RECORD=RECORD,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
