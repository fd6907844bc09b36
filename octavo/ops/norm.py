"""Normalisation. Statistics are computed in float32 whatever the dtype of the input."""

from __future__ import annotations

import torch

from octavo.ops.dispatch import bound


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, weight_offset: float = 0.0) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * (weight + weight_offset) over the last dimension (Zhang & Sennrich 2019).

    x [..., D], last dimension dense; weight [D]. Returns a contiguous [..., D] of x's dtype. With no offset the
    normalised value is rounded to x's dtype before the product, with one (Gemma's 1 + w) after it.
    """
    return bound.rms_norm(x, weight, eps, weight_offset)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, weight_offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x + residual), x + residual), the sum rounded to x's dtype. x, residual [T, D]. Both results
    are new. A residual of float32 beside a narrower x stays so: the sum is float32, and what is normalised is the sum
    rounded to x's dtype."""
    return bound.add_rms_norm(x, residual, weight, eps, weight_offset)


def gated_rms_norm(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    num_groups: int = 1,
    norm_before_gate: bool = False,
) -> torch.Tensor:
    """rms_norm(x * silu(gate)), or rms_norm(x) * silu(gate) with `norm_before_gate`. Each of `num_groups` equal parts
    of the last dimension is normalised by itself.

    x and gate [T, D], last dimension dense; weight [D]. Returns a contiguous [T, D] of x's dtype, rounded to it
    before the product with the weight or, with `norm_before_gate`, after that with the gate.
    """
    return bound.gated_rms_norm(x, gate, weight, eps, num_groups, norm_before_gate)
