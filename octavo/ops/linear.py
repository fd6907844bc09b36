"""Matrix products."""

from __future__ import annotations

import torch

from octavo.ops.dispatch import bound


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight^T + bias. x [T, I]; weight [O, I] and bias [O] of x's dtype. Returns a contiguous [T, O]."""
    return bound.linear(x, weight, bias)
