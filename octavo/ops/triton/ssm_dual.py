"""Mamba-2's state-space dual in Triton. Rows of up to SHORT_TOKENS tokens go token by token, with a tile of the state
in registers; longer ones by chunks (ssm_chunks.py)."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from octavo.ops.state_rows import SHORT_TOKENS, StateRows
from octavo.ops.torch import ssm as specification
from octavo.ops.triton.attention_work import device_limits
from octavo.ops.triton.chain import follow, launch_options
from octavo.ops.triton.ssm_chunks import chunk_config, chunked_ssd
from octavo.ops.triton.ssm_work import list_chunks, time_step

TILE = 1024  # values of a state that a program has at most
PROGRAMS = 512  # that a GPU wants at least


@triton.jit
def _ssd_short(
    x,
    dt,
    dt_bias,
    A,
    B,
    C,
    D,
    states,
    blocks,
    fresh,
    query_start,
    out,
    strides,
    state_stride,
    low,
    high,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    HAS_LIMIT: tl.constexpr,
    HAS_FRESH: tl.constexpr,
    IS_DECODE: tl.constexpr,
    SHORT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHAIN: tl.constexpr,
):
    """A program has a tile of a row's state, of one head."""
    follow(CHAIN)
    tiles: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    head = tl.program_id(0) // tiles
    row = tl.program_id(1)
    begin = row.to(tl.int64)
    if not IS_DECODE:
        begin = tl.load(query_start + row).to(tl.int64)
    end = tl.load(query_start + row + 1).to(tl.int64)
    if (end <= begin) | (end - begin > SHORT):
        return
    p = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N)
    inside = (p < P)[:, None] & (n < N)[None, :]
    block = tl.load(blocks + row).to(tl.int64)
    state_at = states + block * state_stride + (head * P + p)[:, None] * N + n[None, :]
    was_there = inside
    if HAS_FRESH:
        was_there = inside & (tl.load(fresh + row).to(tl.int32) == 0)
    state = tl.load(state_at, mask=was_there, other=0.0).to(tl.float32)
    bias, decay, skip = tl.load(dt_bias + head), tl.load(A + head), tl.load(D + head)
    place = head // GROUP * N + n
    for token in range(begin, end):
        value = tl.load(x + token * strides[0] + head * P + p, mask=p < P, other=0.0).to(tl.float32)
        into = tl.load(B + token * strides[2] + place, mask=n < N, other=0.0).to(tl.float32)
        out_of = tl.load(C + token * strides[3] + place, mask=n < N, other=0.0).to(tl.float32)
        delta = time_step(tl.load(dt + token * strides[1] + head), bias, low, high, HAS_LIMIT)
        state = tl.exp(delta * decay) * state + (delta * value)[:, None] * into[None, :]
        y = tl.sum(state * out_of[None, :], 1) + skip * value
        tl.store(out + (token * H + head) * P + p, y.to(out.dtype.element_ty), mask=p < P)
    tl.store(state_at, state.to(states.dtype.element_ty), mask=inside)


def ssd(
    x_THP: torch.Tensor,
    dt_TH: torch.Tensor,
    dt_bias_H: torch.Tensor,
    dt_limit: tuple[float, float],
    A_H: torch.Tensor,
    B_TGN: torch.Tensor,
    C_TGN: torch.Tensor,
    D_H: torch.Tensor,
    states: torch.Tensor,
    rows: StateRows,
    return_states: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """States after each token come from the specification, in steps without padding. In bfloat16, long rows round what
    they multiply; sums and states are float32."""
    if return_states:
        return specification.ssd(x_THP, dt_TH, dt_bias_H, dt_limit, A_H, B_TGN, C_TGN, D_H, states, rows, True)
    num_tokens, num_heads, head_dim = x_THP.shape
    num_groups, state_size = B_TGN.shape[1:]
    bounds = rows.bounds
    out = torch.empty(x_THP.shape, dtype=x_THP.dtype, device=x_THP.device)
    block_n = triton.next_power_of_2(state_size)
    block_p = min(triton.next_power_of_2(head_dim), max(1, TILE // block_n))
    fewest = PROGRAMS if x_THP.is_cuda else 1
    while block_p > 8 and rows.num_rows * num_heads * triton.cdiv(head_dim, block_p) < fewest:
        block_p //= 2
    _ssd_short[(num_heads * triton.cdiv(head_dim, block_p), rows.num_rows)](
        x_THP,
        dt_TH,
        dt_bias_H,
        A_H,
        B_TGN,
        C_TGN,
        D_H,
        states,
        rows.blocks,
        rows.fresh,
        rows.query_start,
        out,
        (x_THP.stride(0), dt_TH.stride(0), B_TGN.stride(0), C_TGN.stride(0)),
        states.stride(0),
        *dt_limit,
        H=num_heads,
        GROUP=num_heads // num_groups,
        P=head_dim,
        N=state_size,
        HAS_LIMIT=dt_limit != (0.0, math.inf),
        HAS_FRESH=rows.fresh is not None,
        IS_DECODE=bounds.is_decode,
        SHORT=1 if bounds.is_decode else SHORT_TOKENS,
        BLOCK_P=block_p,
        BLOCK_N=block_n,
        num_warps=max(1, min(4, block_p * block_n // 1024)),
        **launch_options(),
    )
    if bounds.long_rows:
        config = chunk_config(x_THP.dtype, device_limits(x_THP.device).shared_bytes)
        chunks = list_chunks(rows, num_tokens, config.size)
        chunked_ssd(x_THP, dt_TH, dt_bias_H, dt_limit, A_H, B_TGN, C_TGN, D_H, states, rows, out, chunks, config)
    return out, None
