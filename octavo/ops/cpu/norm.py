"""RMSNorm by the compiled kernels. What they were not written for goes to torch."""

from __future__ import annotations

import torch

from octavo import _cpu
from octavo.ops.cpu.linear import NUMBER
from octavo.ops.cpu.memory import empty
from octavo.ops.torch import norm as specification


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, weight_offset: float = 0.0) -> torch.Tensor:
    shape, strides, dtype = x.shape, x.stride(), x.dtype
    kind = NUMBER.get(dtype)
    if kind is None or weight.dtype != dtype or strides[-1] != 1 or not weight.is_contiguous():
        return specification.rms_norm(x, weight, eps, weight_offset)
    if len(shape) == 2:
        outer, inner, outer_stride, inner_stride = shape[0], 1, strides[0], 0
    elif len(shape) == 3:
        (outer, inner, _), (outer_stride, inner_stride, _) = shape, strides
    elif x.is_contiguous():
        size = shape[-1]
        outer, inner, outer_stride, inner_stride = x.numel() // size if size else 0, 1, size, 0
    else:
        return specification.rms_norm(x, weight, eps, weight_offset)
    out = empty(tuple(shape), dtype)
    _cpu.rms_norm(
        x.data_ptr(),
        kind,
        outer,
        inner,
        shape[-1],
        outer_stride,
        inner_stride,
        weight.data_ptr(),
        eps,
        weight_offset,
        out.data_ptr(),
    )
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, weight_offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    (rows, size), (x_stride, x_step), dtype, wide = x.shape, x.stride(), x.dtype, residual.dtype
    kind = NUMBER.get(dtype)
    residual_stride, residual_step = residual.stride()
    if (
        kind is None
        or weight.dtype != dtype
        or (wide != dtype and wide != torch.float32)
        or x_step != 1
        or residual_step != 1
        or not weight.is_contiguous()
    ):
        return specification.add_rms_norm(x, residual, weight, eps, weight_offset)
    out, total = empty((rows, size), dtype), empty((rows, size), wide)
    _cpu.add_rms_norm(
        x.data_ptr(),
        kind,
        x_stride,
        residual.data_ptr(),
        NUMBER[wide],
        residual_stride,
        rows,
        size,
        weight.data_ptr(),
        eps,
        weight_offset,
        out.data_ptr(),
        total.data_ptr(),
    )
    return out, total


def gated_rms_norm(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    num_groups: int = 1,
    norm_before_gate: bool = False,
) -> torch.Tensor:
    (rows, size), dtype = x.shape, x.dtype
    kind = NUMBER.get(dtype)
    if (
        kind is None
        or gate.dtype != dtype
        or weight.dtype != dtype
        or x.stride(1) != 1
        or gate.stride(1) != 1
        or not weight.is_contiguous()
    ):
        return specification.gated_rms_norm(x, gate, weight, eps, num_groups, norm_before_gate)
    out = empty((rows, size), dtype)
    _cpu.gated_rms_norm(
        x.data_ptr(),
        kind,
        x.stride(0),
        gate.data_ptr(),
        gate.stride(0),
        rows,
        size,
        num_groups,
        weight.data_ptr(),
        eps,
        norm_before_gate,
        out.data_ptr(),
    )
    return out
