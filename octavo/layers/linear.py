"""Linear layers. What is stored and how it is multiplied is the LinearMethod's, which ranks hold what the Shard's."""

from __future__ import annotations

import torch
from torch import nn

from octavo.distributed.shard import Shard
from octavo.layers.build import BuildContext


class Linear(nn.Module):
    """y = x W^T + b, the whole weight on every rank. x [T, in_features] -> [T, sum(parts)].

    `parts` are the sizes of the outputs that are fused in one product, as loaders and adapters know them.
    """

    shard_dim: int | None = None  # of the weight [out, in]

    def __init__(
        self, build: BuildContext, in_features: int, out_features: int | tuple[int, ...], bias: bool = False
    ) -> None:
        super().__init__()
        parts = (out_features,) if isinstance(out_features, int) else out_features
        self.name, self.in_features, self.out_features = build.prefix, in_features, sum(parts)
        self.dtype, self.device = build.dtype, build.device
        self.weight_shard = Shard(parts, self.shard_dim)
        self.bias: nn.Parameter | None = None
        if bias:
            self.bias = build.parameter((self.out_features,), Shard(parts, 0 if self.shard_dim == 0 else None))
        self.method = build.linear_method(self.name)
        self.method.create(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.method.apply(self, x)

    def finalize(self) -> None:
        self.method.finalize(self)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.weight_shard.parts}, {type(self.method).__name__}"


class ColumnLinear(Linear):
    """Ranks divide the outputs."""

    shard_dim = 0


class FusedLinear(ColumnLinear):
    """Several column-parallel products of one input in one: query, key and value; gate and up."""

    def __init__(self, build: BuildContext, in_features: int, parts: tuple[int, ...], bias: bool = False) -> None:
        super().__init__(build, in_features, parts, bias)

    def gated(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        """activation(first part) * second part, of two of one size: [T, in_features] -> [T, parts[1]]."""
        return self.method.apply_gated(self, x, activation)


class RowLinear(Linear):
    """Ranks divide the inputs; their results are summed."""

    shard_dim = 1
