"""How a parameter is divided over ranks, as an attribute that the loader reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Shard:
    """`parts` are the whole sizes, along `fused_dim`, of the tensors that a fused parameter is made of (one if it is
    not fused). `dim` is the dimension that ranks divide among them, each part on its own; None if all hold everything.
    """

    parts: tuple[int, ...]
    dim: int | None = None
    fused_dim: int = 0


def parameter(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, shard: Shard) -> torch.nn.Parameter:
    """A parameter with no values yet; `loader/assign.py` fills it."""
    made = torch.nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)
    made.shard = shard  # type: ignore[attr-defined]
    return made
