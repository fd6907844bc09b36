"""RMSNorm in torch."""

from __future__ import annotations

import torch
from torch.nn import functional


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, weight_offset: float = 0.0) -> torch.Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))
    if weight_offset:
        return (normed * (weight.float() + weight_offset)).to(x.dtype)
    return normed.to(x.dtype) * weight


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, weight_offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    total = x + residual
    return rms_norm(total.to(x.dtype), weight, eps, weight_offset), total


def gated_rms_norm(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    num_groups: int = 1,
    norm_before_gate: bool = False,
) -> torch.Tensor:
    opened = functional.silu(gate.float())
    wide = x.float() if norm_before_gate else x.float() * opened
    groups = wide if num_groups == 1 else wide.unflatten(-1, (num_groups, -1))
    scale = torch.rsqrt(groups.square().mean(-1, keepdim=True).add_(eps))
    normed = (groups * scale).reshape(wide.shape)
    if norm_before_gate:
        return (normed * weight.float() * opened).to(x.dtype)
    return normed.to(x.dtype) * weight
