"""Activations by the names that checkpoints use."""

from __future__ import annotations

from octavo.errors import UnsupportedModel

GATED = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def gated_activation(name: str) -> str:
    """What ops/activation.py calls it."""
    try:
        return GATED[name]
    except KeyError:
        raise UnsupportedModel(f"activation {name!r} is unknown for a gated MLP; known: {', '.join(GATED)}") from None
