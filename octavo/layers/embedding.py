"""Token embeddings and the output head, which may share one weight."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from octavo.distributed.shard import Shard
from octavo.layers.build import BuildContext
from octavo.layers.linear import ColumnLinear
from octavo.ops.linear import linear


class Embedding(nn.Module):
    """ids [T] int64 -> [T, size], times `scale` (rounded to the weight's dtype) if there is one."""

    def __init__(self, build: BuildContext, vocab_size: int, size: int, scale: float | None = None) -> None:
        super().__init__()
        self.weight = build.parameter((vocab_size, size), Shard((vocab_size,), 0))
        self.scale = None if scale is None else torch.tensor(scale, dtype=build.dtype, device=build.device)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = functional.embedding(ids, self.weight)
        return hidden if self.scale is None else hidden * self.scale


class OutputHead(ColumnLinear):
    """hidden [S, size] -> logits [S, vocab_size]."""


class TiedHead(nn.Module):
    """The embedding's weight used once more. It holds no parameter of its own."""

    def __init__(self, embedding: Embedding) -> None:
        super().__init__()
        self._shared = (embedding,)  # in a tuple, so that it is not a submodule here

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(hidden, self._shared[0].weight)
