"""Matrix products, by the library that torch was built with."""

from __future__ import annotations

import torch
from torch.nn import functional


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    if x.device.type == "cpu" and x.dtype == torch.float32 and 8 <= x.shape[0] <= 64:
        # MKL is 15 to 35% faster at these sizes when the long side, the outputs, comes first
        out = torch.mm(weight, x.t()).t().contiguous()
        return out if bias is None else out.add_(bias)
    return functional.linear(x, weight, bias)
