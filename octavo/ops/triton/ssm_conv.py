"""The causal convolution in Triton, rows of any lengths in one launch.

    row of 7 tokens, 4 taps      0 1 2 | 3 4 5 6
    whose program                row   | tiles of tokens

A row's program computes the outputs that see the row's state, and writes the new one; no other reads it. All other
outputs need tokens alone: programs have tiles of these, whatever their rows. In a decode step there are none.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.ops.state_rows import StateRows
from octavo.ops.torch import ssm as specification
from octavo.ops.triton.chain import follow, launch_options
from octavo.ops.triton.ssm_work import silu, token_places

BLOCK_T, BLOCK_C = 16, 256


@triton.jit
def _write_row(
    x,
    weight,
    bias,
    states,
    out,
    row_block,
    is_fresh,
    begin,
    count,
    channel,
    x_stride,
    state_stride,
    C,
    W: tl.constexpr,
    WIDTH: tl.constexpr,
    ACTIVATE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """The first outputs of a row, and its state. Inputs are counted from the state's first: place W - 1 is the row's
    first token."""
    inside = channel < C
    x += begin * x_stride
    out += begin * C
    state = states + row_block * state_stride + channel * (W - 1)
    was_there = inside & (is_fresh == 0)
    # The new state: the last W - 1 inputs.
    tap = tl.arange(0, WIDTH)[None, :]
    place = count + tap
    kept = inside[:, None] & (tap < W - 1) & (count > 0)
    old = tl.load(state[:, None] + place, mask=kept & was_there[:, None] & (place < W - 1), other=0.0).to(tl.float32)
    token_at = x + (place - (W - 1)) * x_stride + channel[:, None]
    new = tl.load(token_at, mask=kept & (place >= W - 1), other=0.0).to(tl.float32)
    after = tl.where(place < W - 1, old, new)
    for first in range(tl.minimum(count, W - 1)):
        total = tl.zeros(channel.shape, tl.float32)
        if HAS_BIAS:
            total = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
        for w in tl.static_range(W):
            at = first + w
            old_one = tl.load(state + at, mask=was_there & (at < W - 1), other=0.0).to(tl.float32)
            new_at = x + (at - (W - 1)) * x_stride + channel
            new_one = tl.load(new_at, mask=inside & (at >= W - 1), other=0.0).to(tl.float32)
            factor = tl.load(weight + channel * W + w, mask=inside, other=0.0).to(tl.float32)
            total += tl.where(at < W - 1, old_one, new_one) * factor
        if ACTIVATE:
            total = silu(total)
        tl.store(out + first * C + channel, total.to(out.dtype.element_ty), mask=inside)
    tl.debug_barrier()  # what one thread overwrites another may not have read
    tl.store(state[:, None] + tap, after.to(states.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["num_rows", "num_tokens"])
def _causal_conv1d(
    x,
    weight,
    bias,
    states,
    blocks,
    fresh,
    query_start,
    places,
    out,
    x_stride,
    state_stride,
    num_rows,
    num_tokens,
    C,
    W: tl.constexpr,
    WIDTH: tl.constexpr,
    ACTIVATE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_FRESH: tl.constexpr,
    IS_DECODE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHAIN: tl.constexpr,
):
    follow(CHAIN)
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    item = tl.program_id(1)
    if item < num_rows:
        is_fresh = 0
        if HAS_FRESH:
            is_fresh = tl.load(fresh + item).to(tl.int32)
        begin = item.to(tl.int64)
        if not IS_DECODE:
            begin = tl.load(query_start + item).to(tl.int64)
        count = tl.load(query_start + item + 1).to(tl.int64) - begin
        _write_row(
            x,
            weight,
            bias,
            states,
            out,
            tl.load(blocks + item).to(tl.int64),
            is_fresh,
            begin,
            count,
            channel,
            x_stride,
            state_stride,
            C,
            W,
            WIDTH,
            ACTIVATE,
            HAS_BIAS,
        )
    elif not IS_DECODE:
        token = (item - num_rows) * BLOCK_T + tl.arange(0, BLOCK_T)
        place = tl.load(places + token, mask=token < num_tokens, other=-1)
        if tl.max(place, 0) >= W - 1:
            inside = (place >= W - 1)[:, None] & (channel < C)[None, :]
            total = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
            at = x + (token.to(tl.int64) - (W - 1))[:, None] * x_stride + channel[None, :]
            for w in tl.static_range(W):
                factor = tl.load(weight + channel * W + w, mask=channel < C, other=0.0).to(tl.float32)
                total += tl.load(at + w * x_stride, mask=inside, other=0.0).to(tl.float32) * factor[None, :]
            if HAS_BIAS:
                total += tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
            if ACTIVATE:
                total = silu(total)
            out_at = out + token.to(tl.int64)[:, None] * C + channel[None, :]
            tl.store(out_at, total.to(out.dtype.element_ty), mask=inside)


def causal_conv1d(
    x_TC: torch.Tensor,
    weight_CW: torch.Tensor,
    bias: torch.Tensor | None,
    states: torch.Tensor,
    rows: StateRows,
    activate: bool = True,
    return_states: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """States after each token come from the specification, in steps without padding."""
    if return_states:
        return specification.causal_conv1d(x_TC, weight_CW, bias, states, rows, activate, True)
    num_tokens, num_channels = x_TC.shape
    width = weight_CW.shape[1]
    out = torch.empty(x_TC.shape, dtype=x_TC.dtype, device=x_TC.device)
    is_decode = rows.bounds.is_decode
    num_tiles = 0 if is_decode else triton.cdiv(num_tokens, BLOCK_T)
    _causal_conv1d[(triton.cdiv(num_channels, BLOCK_C), rows.num_rows + num_tiles)](
        x_TC,
        weight_CW,
        bias,
        states,
        rows.blocks,
        rows.fresh,
        rows.query_start,
        None if is_decode else token_places(rows, num_tokens),
        out,
        x_TC.stride(0),
        states.stride(0),
        rows.num_rows,
        num_tokens,
        num_channels,
        W=width,
        WIDTH=triton.next_power_of_2(width - 1),
        ACTIVATE=activate,
        HAS_BIAS=bias is not None,
        HAS_FRESH=rows.fresh is not None,
        IS_DECODE=is_decode,
        BLOCK_T=BLOCK_T,
        BLOCK_C=BLOCK_C,
        num_warps=4,
        **launch_options(),
    )
    return out, None
