"""Attention of rows of few query tokens: a row's keys are split over programs, whose parts are then combined."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.ops.triton.attention_prefix import PrefixParts
from octavo.ops.triton.attention_tiles import FLOOR, attend, combine
from octavo.ops.triton.attention_work import RECORD, DecodeConfig, Heads, Work, Workspace, head_block
from octavo.ops.triton.chain import follow, launch_options


@triton.jit(do_not_specialize=["table_stride", "window", "num_rows"])
def _decode_kernel(
    q,
    cache,
    block_table,
    items,
    starts,  # [programs + 1] int32, if STREAM: each program's first item
    out,
    sinks,
    parts_out,
    parts_lse,
    arrived,  # [slots, K] int32: splits done, of each row with several; all zeros between launches
    prefix_out,  # [splits, R, PREFIX_TOKENS, N, BLOCK_H] float32: what the shared-prefix kernel found
    prefix_lse,  # [splits, R, PREFIX_TOKENS, N]
    prefix_splits,  # [R] int32: how many of its splits hold something of a row
    q_stride,
    block_stride,
    value_stride,
    slot_stride,
    head_stride,
    table_stride,
    num_rows,
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
    PREFIX_TOKENS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    STREAM: tl.constexpr,
    FUSED: tl.constexpr,  # the last split to end combines them all; else _combine_kernel does
    PRECISION: tl.constexpr,
    RECORD: tl.constexpr,
    CHAIN: tl.constexpr,
):
    follow(CHAIN)
    kv_head = tl.program_id(0)
    K: tl.constexpr = N // GROUP
    line = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_H)
    head = kv_head * GROUP + line % GROUP
    k_base = cache + kv_head * head_stride
    v_base = k_base + value_stride
    if STREAM:
        first_item, last_item, stride = tl.load(starts + tl.program_id(1)), tl.load(starts + tl.program_id(1) + 1), 1
    else:
        first_item, last_item, stride = tl.program_id(1), tl.load(items), tl.num_programs(1)
    for item in range(first_item, last_item, stride):
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
        if HAS_SINKS:  # noqa: SIM102
            if split == 0:
                m = tl.load(sinks + head, mask=valid, other=0.0).to(tl.float32) * 1.4426950408889634
                l = tl.full([BLOCK_M], 1.0, tl.float32)  # noqa: E741
        if HAS_PREFIX:  # noqa: SIM102
            if split == 0:  # goes on from what is known of the prefix
                for part in range(tl.load(prefix_splits + row)):
                    place = ((part * num_rows + row) * PREFIX_TOKENS + line // GROUP) * N + head
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
        acc, m, l = attend(  # noqa: E741
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
                    whole = combine(parts_out, parts_lse, first_slot, num_splits, kv_head, K, valid, BLOCK_M, BLOCK_H)
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
            whole = combine(
                parts_out, parts_lse, tl.load(record + 6), num_splits, kv_head, N // GROUP, valid, BLOCK_M, BLOCK_H
            )
            inner = valid[:, None] & (column < H)[None, :]
            tl.store(
                out + (token * N + head)[:, None] * H + column[None, :], whole.to(out.dtype.element_ty), mask=inner
            )


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
    block_h = head_block(heads.head_dim)
    slots = 2 * work.target
    name = (num_kv_heads, block_m, block_h)
    parts_out = workspace.take(("parts", *name), slots * num_kv_heads * block_m * block_h, torch.float32, device)
    parts_lse = workspace.take(("sums", *name), slots * num_kv_heads * block_m, torch.float32, device)
    arrived = workspace.take(("arrived", num_kv_heads), slots * num_kv_heads, torch.int32, device)
    scale, cap = heads.logits()
    programs = work.target if config.stream else min(work.max_items, -(-config.max_programs // num_kv_heads))
    grid = (num_kv_heads, programs)
    _decode_kernel[grid](
        q_TNH,
        cache,
        block_table_RB,
        work.items,
        work.starts,
        out_TNH,
        heads.sinks,
        parts_out,
        parts_lse,
        arrived,
        prefix.out if prefix else None,
        prefix.lse if prefix else None,
        prefix.splits if prefix else None,
        q_TNH.stride(0),
        cache.stride(0),
        cache.stride(1),
        cache.stride(2),
        cache.stride(3),
        block_table_RB.stride(0),
        work.bounds.rows,
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
        PREFIX_TOKENS=prefix.tokens if prefix else 1,
        HAS_WINDOW=heads.window is not None,
        HAS_CAP=heads.soft_cap is not None,
        HAS_SINKS=heads.sinks is not None,
        HAS_PREFIX=prefix is not None,
        STREAM=config.stream,
        FUSED=config.fused,
        PRECISION="ieee",
        RECORD=RECORD,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **launch_options(),
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
