"""Recurrent layers: the causal convolution and the state-space recurrences of Mamba-1 and Mamba-2.

Each op reads the states of its rows, computes all tokens of the step and leaves the states after each row's last token.
Arithmetic is float32 whatever the dtypes of inputs and states. T tokens, R rows, B state blocks.
"""

from __future__ import annotations

import torch

from octavo.ops.dispatch import bound
from octavo.ops.state_rows import StateRows


def causal_conv1d(
    x_TC: torch.Tensor,
    weight_CW: torch.Tensor,
    bias: torch.Tensor | None,
    states: torch.Tensor,
    rows: StateRows,
    activate: bool = True,
    return_states: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Each channel's convolution with its last W inputs: out[t] = bias + sum over w of weight[w] x[t - W + 1 + w], then
    silu if `activate`. Inputs before a row's first token of the step are its state.

    x may be strided by token. states [B, C, W - 1], strided by block, of any floating dtype: the last W - 1 inputs,
    oldest first; updated. Returns a contiguous [T, C] of x's dtype and, if asked for, the float32 states after each
    token [T, C, W - 1].
    """
    return bound.causal_conv1d(x_TC, weight_CW, bias, states, rows, activate, return_states)


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
    """Mamba-1 (arXiv 2312.00752, algorithm 2). With delta = softplus(dt), for each channel d and state n,

        h[t] = exp(delta[t] A) h[t - 1] + delta[t] x[t] B[t]        y[t] = (C[t] . h[t] + D x[t]) silu(gate[t])

    x, dt, gate, B and C may be strided by token; A and D are float32. states [B, D, N], strided by block, of any
    floating dtype; updated. Returns a contiguous [T, D] of x's dtype and, if asked for, the float32 states after each
    token [T, D, N].
    """
    return bound.selective_scan(x_TD, dt_TD, A_DN, B_TN, C_TN, D_D, gate_TD, states, rows, return_states)


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
    """Mamba-2's state-space dual (arXiv 2405.21060, section 6). With delta = softplus(dt + dt_bias), clamped to
    dt_limit, for each head h of group g = h // (H / G),

        S[t] = exp(delta[t] A) S[t - 1] + delta[t] x[t] B[t]^T      y[t] = S[t] C[t] + D x[t]

    x, dt, B and C may be strided by token; A, D and dt_bias are float32. states [B, H, P, N], strided by block, of any
    floating dtype; updated. Returns a contiguous [T, H, P] of x's dtype and, if asked for, the float32 states after
    each token [T, H, P, N].
    """
    return bound.ssd(x_THP, dt_TH, dt_bias_H, dt_limit, A_H, B_TGN, C_TGN, D_H, states, rows, return_states)
