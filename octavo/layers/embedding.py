"""Token embeddings and the output head, which may share one weight."""

from __future__ import annotations

import torch
from torch import nn

from octavo.distributed.shard import Shard
from octavo.layers.build import BuildContext
from octavo.layers.linear import ColumnLinear


class Embedding(nn.Module):
    """A LinearLayer looked up by row: ids [T] int64 -> [T, size], times `scale` (rounded to the weight's dtype) if
    there is one."""

    bias: nn.Parameter | None = None

    def __init__(self, build: BuildContext, vocab_size: int, size: int, scale: float | None = None) -> None:
        super().__init__()
        self.name, self.in_features, self.out_features = build.prefix, size, vocab_size
        self.dtype, self.device = build.dtype, build.device
        self.weight_shard = Shard((vocab_size,), 0)
        self.method = build.linear_method(self.name)
        self.method.create(self)
        self.scale = None if scale is None else torch.tensor(scale, dtype=build.dtype, device=build.device)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.method.embed(self, ids)
        return hidden if self.scale is None else hidden * self.scale

    def as_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """The product with the same weight: hidden [S, size] -> [S, vocab_size]."""
        return self.method.apply(self, hidden)

    def finalize(self) -> None:
        self.method.finalize(self)


class OutputHead(ColumnLinear):
    """hidden [S, size] -> logits [S, vocab_size]."""


class TiedHead(nn.Module):
    """The embedding's weight used once more. It holds no parameter of its own."""

    def __init__(self, embedding: Embedding) -> None:
        super().__init__()
        self._shared = (embedding,)  # in a tuple, so that it is not a submodule here

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._shared[0].as_head(hidden)
