"""Activations by the names that checkpoints use."""

from __future__ import annotations

from collections.abc import Callable

import torch

from octavo.errors import UnsupportedModel
from octavo.ops.activation import gelu_and_mul, gelu_tanh_and_mul, silu_and_mul

GATED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": silu_and_mul,
    "swish": silu_and_mul,
    "gelu": gelu_and_mul,
    "gelu_new": gelu_tanh_and_mul,
    "gelu_pytorch_tanh": gelu_tanh_and_mul,
}


def gated_activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """[T, 2F] -> [T, F]: the activation of the first half times the second."""
    try:
        return GATED[name]
    except KeyError:
        raise UnsupportedModel(f"activation {name!r} is unknown for a gated MLP; known: {', '.join(GATED)}") from None
