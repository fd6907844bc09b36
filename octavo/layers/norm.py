"""RMSNorm and its variants."""

from __future__ import annotations

import torch
from torch import nn

from octavo.distributed.shard import Shard
from octavo.layers.build import BuildContext
from octavo.ops.norm import add_rms_norm, gated_rms_norm, rms_norm


class RMSNorm(nn.Module):
    """x / rms(x) * weight, over the last dimension."""

    weight_offset = 0.0

    def __init__(self, build: BuildContext, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = build.parameter((size,), Shard((size,)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps, self.weight_offset)

    def add(self, x: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of x + residual, x + residual). Without a residual yet, x is it."""
        if residual is None:
            return self.forward(x), x
        return add_rms_norm(x, residual, self.weight, self.eps, self.weight_offset)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class OffsetRMSNorm(RMSNorm):
    """x / rms(x) * (1 + weight): weights are kept around zero, as Gemma does."""

    weight_offset = 1.0


class WideRMSNorm(RMSNorm):
    """With a residual stream in float32, whatever the model's dtype; what is normalised is rounded to that first."""

    def add(self, x: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        total = x.float() if residual is None else residual + x
        return self.forward(total.to(self.weight.dtype)), total


class GatedRMSNorm(nn.Module):
    """RMSNorm of a gated value, rms_norm(x * silu(gate)), or the gate after it; by `num_groups` parts of x."""

    def __init__(
        self, build: BuildContext, size: int, eps: float, num_groups: int = 1, norm_before_gate: bool = False
    ) -> None:
        super().__init__()
        self.eps, self.num_groups, self.norm_before_gate = eps, num_groups, norm_before_gate
        self.weight = build.parameter((size,), Shard((size,), 0))

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return gated_rms_norm(x, gate, self.weight, self.eps, self.num_groups, self.norm_before_gate)
