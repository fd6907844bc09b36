"""Feed-forward layers."""

from __future__ import annotations

import torch
from torch import nn

from octavo.layers.activation import gated_activation
from octavo.layers.build import BuildContext
from octavo.layers.linear import FusedLinear, RowLinear


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)), gate and up in one product."""

    def __init__(
        self,
        build: BuildContext,
        hidden_size: int,
        intermediate_size: int,
        activation: str,
        bias: bool = False,
        name: str = "mlp",
    ) -> None:
        super().__init__()
        build = build.at(name)
        self.activation = gated_activation(activation)
        self.gate_up = FusedLinear(build.at("gate_up"), hidden_size, (intermediate_size, intermediate_size), bias)
        self.down = RowLinear(build.at("down"), intermediate_size, hidden_size, bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.down(self.gate_up.gated(hidden, self.activation))
