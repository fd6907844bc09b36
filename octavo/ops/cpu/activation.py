"""Gated activations by the compiled kernels."""

from __future__ import annotations

import torch

from octavo import _cpu
from octavo.ops.cpu.linear import NUMBER
from octavo.ops.cpu.memory import empty
from octavo.ops.torch import activation as specification

SILU, GELU, GELU_TANH = range(3)


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    return _run(SILU, x) if _is_known(x) else specification.silu_and_mul(x)


def gelu_and_mul(x: torch.Tensor) -> torch.Tensor:
    return _run(GELU, x) if _is_known(x) else specification.gelu_and_mul(x)


def gelu_tanh_and_mul(x: torch.Tensor) -> torch.Tensor:
    return _run(GELU_TANH, x) if _is_known(x) else specification.gelu_tanh_and_mul(x)


def _is_known(x: torch.Tensor) -> bool:
    return x.dtype in NUMBER and x.dim() == 2 and x.stride(1) == 1 and x.shape[1] % 2 == 0


def _run(kind: int, x: torch.Tensor) -> torch.Tensor:
    rows, both = x.shape
    out = empty((rows, both // 2), x.dtype)
    _cpu.activate(kind, x.data_ptr(), NUMBER[x.dtype], x.stride(0), rows, both // 2, out.data_ptr())
    return out
