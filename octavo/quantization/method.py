"""How a linear layer keeps its weight and multiplies by it. One implementation a weight format.

`ExpertsMethod`, the same for the experts of a mixture, joins when the first mixture of experts does.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional

from octavo.distributed.shard import Shard, parameter
from octavo.ops.activation import GATED
from octavo.ops.linear import linear


class LinearLayer(Protocol):
    """What a method sees of a layer. Parameters are attributes of it, so that the loader finds them by name."""

    name: str
    in_features: int
    out_features: int
    bias: torch.nn.Parameter | None
    dtype: torch.dtype
    device: torch.device
    weight_shard: Shard

    def register_parameter(self, name: str, param: torch.nn.Parameter | None) -> None: ...


class LinearMethod(Protocol):
    def create(self, layer: LinearLayer) -> None:
        """Registers the parameters, without values."""

    def apply(self, layer: LinearLayer, x: torch.Tensor) -> torch.Tensor:
        """[T, in_features] -> [T, out_features], bias included."""

    def apply_gated(self, layer: LinearLayer, x: torch.Tensor, activation: str) -> torch.Tensor:
        """activation(gate) * up, [gate, up] being what `apply` gives: [T, in_features] -> [T, out_features / 2]. The
        activation by a name of ops/activation.py's GATED."""

    def embed(self, layer: LinearLayer, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight: ids [T] int64 -> [T, in_features] of the layer's dtype."""

    def finalize(self, layer: LinearLayer) -> None:
        """Called once when all values are there: repack, transpose, drop what is no longer needed."""


class UnquantizedLinear:
    """The weight as it is, [out_features, in_features], in the model's dtype."""

    def create(self, layer: LinearLayer) -> None:
        shape = (layer.out_features, layer.in_features)
        layer.register_parameter("weight", parameter(shape, layer.dtype, layer.device, layer.weight_shard))

    def apply(self, layer: LinearLayer, x: torch.Tensor) -> torch.Tensor:
        return linear(x, layer.weight, layer.bias)  # type: ignore[attr-defined]

    def apply_gated(self, layer: LinearLayer, x: torch.Tensor, activation: str) -> torch.Tensor:
        return GATED[activation](self.apply(layer, x))

    def embed(self, layer: LinearLayer, ids: torch.Tensor) -> torch.Tensor:
        return functional.embedding(ids, layer.weight)  # type: ignore[attr-defined]

    def finalize(self, layer: LinearLayer) -> None:
        pass
