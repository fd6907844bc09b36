"""Mamba-1's recurrence in Triton: a program has some channels of a row, their states in registers, and goes through the
row's tokens. The next token is read while one is computed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.ops.state_rows import StateRows
from octavo.ops.torch import ssm as specification
from octavo.ops.triton.chain import follow, launch_options
from octavo.ops.triton.ssm_work import silu, softplus


@triton.jit
def _read(x, dt, gate, B, C, token, strides, channel, is_channel, place, is_place):
    """One token's inputs in float32; of no token, zeros."""
    a = tl.load(x + token * strides[0] + channel, mask=is_channel, other=0.0).to(tl.float32)
    b = tl.load(dt + token * strides[1] + channel, mask=is_channel, other=0.0).to(tl.float32)
    c = tl.load(gate + token * strides[2] + channel, mask=is_channel, other=0.0).to(tl.float32)
    d = tl.load(B + token * strides[3] + place, mask=is_place, other=0.0).to(tl.float32)
    e = tl.load(C + token * strides[4] + place, mask=is_place, other=0.0).to(tl.float32)
    return a, b, c, d, e


@triton.jit(do_not_specialize=["num_rows"])
def _selective_scan(
    x,
    dt,
    A,
    B,
    C,
    D,
    gate,
    states,
    blocks,
    fresh,
    query_start,
    out,
    strides,
    state_stride,
    num_rows,
    SIZE: tl.constexpr,
    N: tl.constexpr,
    HAS_FRESH: tl.constexpr,
    IS_DECODE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHAIN: tl.constexpr,
):
    follow(CHAIN)
    row = num_rows - 1 - tl.program_id(1)  # long rows, which come last, first
    begin = row.to(tl.int64)
    if not IS_DECODE:
        begin = tl.load(query_start + row).to(tl.int64)
    end = tl.load(query_start + row + 1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    place = tl.arange(0, BLOCK_N)
    is_channel, is_place = channel < SIZE, place < N
    inside = (is_channel[:, None] & is_place[None, :]) & (begin < end)
    state_at = states + tl.load(blocks + row).to(tl.int64) * state_stride + channel[:, None] * N + place[None, :]
    was_there = inside
    if HAS_FRESH:
        was_there = inside & (tl.load(fresh + row).to(tl.int32) == 0)
    state = tl.load(state_at, mask=was_there, other=0.0).to(tl.float32)
    decay = tl.load(A + channel[:, None] * N + place[None, :], mask=inside, other=0.0)
    skip = tl.load(D + channel, mask=is_channel, other=0.0)
    is_token = begin < end
    next_x, next_dt, next_gate, next_B, next_C = _read(
        x, dt, gate, B, C, begin, strides, channel, is_channel & is_token, place, is_place & is_token
    )
    for token in range(begin, end):
        now_x, now_dt, now_gate, now_B, now_C = next_x, next_dt, next_gate, next_B, next_C
        if not IS_DECODE:
            is_token = token + 1 < end
            next_x, next_dt, next_gate, next_B, next_C = _read(
                x, dt, gate, B, C, token + 1, strides, channel, is_channel & is_token, place, is_place & is_token
            )
        delta = softplus(now_dt)
        state = tl.exp(delta[:, None] * decay) * state + (delta * now_x)[:, None] * now_B[None, :]
        y = (tl.sum(state * now_C[None, :], 1) + skip * now_x) * silu(now_gate)
        tl.store(out + token * SIZE + channel, y.to(out.dtype.element_ty), mask=is_channel)
    tl.store(state_at, state.to(states.dtype.element_ty), mask=inside)


def selective_scan(
    x_TD: torch.Tensor,
    dt_TD: torch.Tensor,
    A_DN: torch.Tensor,
    B_TN: torch.Tensor,
    C_TN: torch.Tensor,
    D_D: torch.Tensor,
    gate_TD: torch.Tensor,
    states: torch.Tensor,
    rows: StateRows,
    return_states: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """States after each token come from the specification, in steps without padding."""
    if return_states:
        return specification.selective_scan(x_TD, dt_TD, A_DN, B_TN, C_TN, D_D, gate_TD, states, rows, True)
    num_channels, state_size = A_DN.shape
    out = torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device)
    is_decode = rows.bounds.is_decode
    block_n = triton.next_power_of_2(state_size)
    # Of a decode step, tiles that fill the device; where rows are long, small ones: each is walked by one program.
    values = 256 if not is_decode else 512 if rows.num_rows <= 8 else 2048
    block_d = max(1, min(values // block_n, triton.next_power_of_2(num_channels)))
    _selective_scan[(triton.cdiv(num_channels, block_d), rows.num_rows)](
        x_TD,
        dt_TD,
        A_DN,
        B_TN,
        C_TN,
        D_D,
        gate_TD,
        states,
        rows.blocks,
        rows.fresh,
        rows.query_start,
        out,
        (x_TD.stride(0), dt_TD.stride(0), gate_TD.stride(0), B_TN.stride(0), C_TN.stride(0)),
        states.stride(0),
        rows.num_rows,
        SIZE=num_channels,
        N=state_size,
        HAS_FRESH=rows.fresh is not None,
        IS_DECODE=is_decode,
        BLOCK_D=block_d,
        BLOCK_N=block_n,
        num_warps=max(1, min(4, block_d * block_n // 512)),
        enable_fp_fusion=False,  # or threads that sum the same would round otherwise, and race to say so
        **launch_options(),
    )
    return out, None
