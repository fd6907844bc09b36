"""Gated activations. The input is what a fused projection returns: gate in the first half, up in the second."""

from __future__ import annotations

from collections.abc import Callable

import torch

from octavo.ops.dispatch import bound


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up. x [T, 2F], rows may be strided. Returns a contiguous [T, F]."""
    return bound.silu_and_mul(x)


def gelu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """gelu(gate) * up with the exact gelu (erf). x [T, 2F]. Returns a contiguous [T, F]."""
    return bound.gelu_and_mul(x)


def gelu_tanh_and_mul(x: torch.Tensor) -> torch.Tensor:
    """gelu(gate) * up with gelu's tanh approximation. x [T, 2F]. Returns a contiguous [T, F]."""
    return bound.gelu_tanh_and_mul(x)


# By the names that `gated_linear_packed` takes.
GATED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": silu_and_mul,
    "gelu": gelu_and_mul,
    "gelu_tanh": gelu_tanh_and_mul,
}
