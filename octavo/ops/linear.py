"""Matrix products."""

from __future__ import annotations

import torch

from octavo.ops.dispatch import bound
from octavo.ops.packed import PackedWeight


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight^T + bias. x [T, I]; weight [O, I] and bias [O] of x's dtype. Returns a contiguous [T, O]."""
    return bound.linear(x, weight, bias)


def linear_packed(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The same for a packed weight. x [T, I], its rows contiguous; bias [O]. Returns a contiguous [T, O] of x's dtype.
    Sums are float32; where rows are few and the weight is quantised, x is rounded to 8 bits in blocks of 32."""
    return bound.linear_packed(x, weight, bias)


def gated_linear_packed(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    """activation(gate) * up, where [gate, up] is what `linear_packed` gives of a weight of two parts of one size F,
    without being rounded before. bias [2F] or None; activation "silu", "gelu" (erf) or "gelu_tanh". Returns a
    contiguous [T, F] of x's dtype."""
    return bound.gated_linear_packed(x, weight, bias, activation)


def rows_packed(ids: torch.Tensor, weight: PackedWeight, dtype: torch.dtype) -> torch.Tensor:
    """Rows of a packed weight, as an embedding. ids [T] int64 -> [T, I]."""
    return bound.rows_packed(ids, weight, dtype)
