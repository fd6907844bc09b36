"""RMSNorm in Triton: a program has one wide row, or several narrow ones, and reads each value once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.ops.triton.chain import follow, launch_options

TILE = 4096  # values a program has at once, where rows are narrow


@triton.jit
def _scaled(wide, weight, size, eps, offset, HAS_OFFSET: tl.constexpr, dtype: tl.constexpr):
    """Rows of `wide` [r, d], zeros past `size`, normalised, times `weight` [1, d]; rounded as specified."""
    normed = wide * tl.rsqrt(tl.sum(wide * wide, 1) / size + eps)[:, None]
    if HAS_OFFSET:
        return (normed * (weight.to(tl.float32) + offset)).to(dtype)
    return (normed.to(dtype).to(tl.float32) * weight.to(tl.float32)).to(dtype)


@triton.jit(do_not_specialize=["num_rows"])
def _rms_norm(
    x_ptr,
    weight_ptr,
    out_ptr,
    num_rows,
    inner,
    outer_stride,
    inner_stride,
    size,
    eps,
    offset,
    HAS_OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHAIN: tl.constexpr,
):
    follow(CHAIN)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    inside = (row < num_rows) & (column < size)
    at = (row // inner) * outer_stride + (row % inner) * inner_stride
    x = tl.load(x_ptr + at + column, mask=inside, other=0.0)
    weight = tl.load(weight_ptr + column, mask=column < size, other=0.0)
    out = _scaled(x.to(tl.float32), weight, size, eps, offset, HAS_OFFSET, x.dtype)
    tl.store(out_ptr + row * size + column, out, mask=inside)


@triton.jit
def _add_rms_norm(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    total_ptr,
    x_stride,
    residual_stride,
    size,
    eps,
    offset,
    HAS_OFFSET: tl.constexpr,
    WIDTH: tl.constexpr,
    CHAIN: tl.constexpr,
):
    follow(CHAIN)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)[None, :]
    inside = column < size
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0)
    residual = tl.load(residual_ptr + row * residual_stride + column, mask=inside, other=0.0)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
    total = (x.to(tl.float32) + residual.to(tl.float32)).to(total_ptr.dtype.element_ty)
    tl.store(total_ptr + row * size + column, total, mask=inside)
    out = _scaled(total.to(x.dtype).to(tl.float32), weight, size, eps, offset, HAS_OFFSET, x.dtype)
    tl.store(out_ptr + row * size + column, out, mask=inside)


@triton.jit
def _gated_rms_norm(
    x_ptr,
    gate_ptr,
    weight_ptr,
    out_ptr,
    x_stride,
    gate_stride,
    width,
    size,
    eps,
    BEFORE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, WIDTH)[None, :]
    column = tl.program_id(1) * size + place
    inside = place < size
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0)
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
    opened = gate / (1.0 + tl.exp(-gate))
    if BEFORE:
        wide = x.to(tl.float32)
        normed = wide * tl.rsqrt(tl.sum(wide * wide, 1) / size + eps)[:, None]
        out = (normed * weight.to(tl.float32) * opened).to(x.dtype)
    else:
        out = _scaled(x.to(tl.float32) * opened, weight, size, eps, 0.0, False, x.dtype)
    tl.store(out_ptr + row * width + column, out, mask=inside)


def _warps(width: int) -> int:
    """16 bytes of a two-byte type a thread, twice."""
    return min(max(width // 512, 1), 16)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, weight_offset: float = 0.0, tile_rows: int | None = None
) -> torch.Tensor:
    """Tiles are as for `tile_rows` rows, if it says how many."""
    size = x.shape[-1]
    if x.dim() > 3 or x.stride(-1) != 1:
        x = x.reshape(-1, size).contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    num_rows = x.numel() // max(size, 1)
    if not num_rows:
        return out
    outer_stride, inner_stride, inner = (
        (x.stride(0), x.stride(1), x.shape[1]) if x.dim() == 3 else (x.stride(0) if x.dim() == 2 else 0, 0, 1)
    )
    width = triton.next_power_of_2(size)
    rows = max(1, min(TILE // width, triton.next_power_of_2(triton.cdiv(tile_rows or num_rows, 1024))))
    _rms_norm[(triton.cdiv(num_rows, rows),)](
        x,
        weight,
        out,
        num_rows,
        inner,
        outer_stride,
        inner_stride,
        size,
        eps,
        weight_offset,
        HAS_OFFSET=weight_offset != 0,
        ROWS=rows,
        WIDTH=width,
        num_warps=_warps(rows * width),
        **launch_options(),
    )
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, weight_offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    num_rows, size = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype), device=x.device)
    if num_rows:
        width = triton.next_power_of_2(size)
        _add_rms_norm[(num_rows,)](
            x,
            residual,
            weight,
            out,
            total,
            x.stride(0),
            residual.stride(0),
            size,
            eps,
            weight_offset,
            HAS_OFFSET=weight_offset != 0,
            WIDTH=width,
            num_warps=_warps(width),
            **launch_options(),
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
    num_rows, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if num_rows:
        size = width // num_groups
        _gated_rms_norm[(num_rows, num_groups)](
            x,
            gate,
            weight,
            out,
            x.stride(0),
            gate.stride(0),
            width,
            size,
            eps,
            BEFORE=norm_before_gate,
            WIDTH=triton.next_power_of_2(size),
            num_warps=_warps(triton.next_power_of_2(size)),
        )
    return out
