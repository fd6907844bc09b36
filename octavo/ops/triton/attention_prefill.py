"""Attention of rows of many query tokens: a program has a tile of them, and goes over all keys that they see."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.ops.triton.attention_tiles import FLOOR, attend
from octavo.ops.triton.attention_work import RECORD, Heads, PrefillConfig, Work, head_block


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
        acc, m, l = attend(  # noqa: E741
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
    acc, m, l = attend(  # noqa: E741
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
    acc, m, l = attend(  # noqa: E741
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
        BLOCK_H=head_block(heads.head_dim),
        HAS_WINDOW=heads.window is not None,
        HAS_CAP=heads.soft_cap is not None,
        HAS_SINKS=heads.sinks is not None,
        PRECISION="ieee",
        RECORD=RECORD,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **({} if config.max_registers is None else {"maxnreg": config.max_registers}),
    )
