"""Matrix products in tiles that do not depend on the number of rows: for batch_invariant.

A program has a tile of the result and sums over all inputs, in order, in float32. The library, and the products of few
rows beside this file, choose tiles and split the sum by the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from octavo.ops.triton.attention_work import DeviceLimits, device_limits
from octavo.ops.triton.chain import follow, launch_options


@dataclass(frozen=True)
class Tile:
    """`rows` by `outputs` of the result, `inner` inputs at a time. Programs of `together` tiles of rows take the same
    weights one after the other."""

    rows: int
    outputs: int
    inner: int
    num_warps: int
    num_stages: int
    together: int = 8


NARROW = Tile(64, 64, 128, 4, 4)
WIDE = Tile(64, 128, 64, 4, 4)
FLOAT32 = Tile(32, 64, 32, 4, 2)
WIDE_OUTPUTS = 16384  # from here on wide tiles are enough to keep a device busy with few rows


def tile_of(num_outputs: int, dtype: torch.dtype, limits: DeviceLimits) -> Tile:
    """By the weight and the device alone."""
    tile = FLOAT32 if dtype == torch.float32 else WIDE if num_outputs >= WIDE_OUTPUTS else NARROW
    stage = (tile.rows + tile.outputs) * tile.inner * dtype.itemsize
    return replace(tile, num_stages=max(1, min(tile.num_stages, limits.shared_bytes // stage)))


@triton.jit(do_not_specialize=["num_rows"])
def _product(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    num_rows,
    x_stride,
    weight_stride,
    num_outputs,
    num_inputs,
    HAS_BIAS: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INNER: tl.constexpr,
    TOGETHER: tl.constexpr,
    STAGES: tl.constexpr,
    CHAIN: tl.constexpr,
):
    follow(CHAIN)
    row_tiles = tl.cdiv(num_rows, ROWS)
    output_tiles = tl.cdiv(num_outputs, OUTPUTS)
    program = tl.program_id(0)
    band = program // (TOGETHER * output_tiles)
    band_rows = tl.minimum(row_tiles - band * TOGETHER, TOGETHER)
    inside_band = program - band * TOGETHER * output_tiles
    row_tile = band * TOGETHER + inside_band % band_rows
    output_tile = inside_band // band_rows

    row = row_tile * ROWS + tl.arange(0, ROWS)
    output = output_tile * OUTPUTS + tl.arange(0, OUTPUTS)
    inner = tl.arange(0, INNER)
    there, wanted = (row < num_rows)[:, None], (output < num_outputs)[:, None]
    x_ptrs = x_ptr + row.to(tl.int64)[:, None] * x_stride + inner[None, :]
    weight_ptrs = weight_ptr + output.to(tl.int64)[:, None] * weight_stride + inner[None, :]
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for first in tl.range(0, num_inputs, INNER, num_stages=STAGES):
        if IS_WHOLE:
            x = tl.load(x_ptrs + first, mask=there, other=0.0)
            weight = tl.load(weight_ptrs + first, mask=wanted, other=0.0)
        else:
            is_input = (first + inner < num_inputs)[None, :]
            x = tl.load(x_ptrs + first, mask=there & is_input, other=0.0)
            weight = tl.load(weight_ptrs + first, mask=wanted & is_input, other=0.0)
        total = tl.dot(x, tl.trans(weight), total, input_precision="ieee")
    is_output = (output < num_outputs)[None, :]
    if HAS_BIAS:
        total += tl.load(bias_ptr + output, mask=output < num_outputs, other=0.0).to(tl.float32)[None, :]
    at = row.to(tl.int64)[:, None] * num_outputs + output[None, :]
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=there & is_output)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return tiled(x, weight, bias, tile_of(weight.shape[0], x.dtype, device_limits(x.device)))


def tiled(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tile: Tile) -> torch.Tensor:
    """x @ weight^T + bias. The result of a row depends on the row, the weight and `tile`."""
    num_rows, num_inputs = x.shape
    num_outputs = weight.shape[0]
    x = x if x.stride(1) == 1 else x.contiguous()
    out = torch.empty(num_rows, num_outputs, dtype=x.dtype, device=x.device)
    if num_rows:
        _product[(triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_outputs, tile.outputs),)](
            x,
            weight,
            weight if bias is None else bias,
            out,
            num_rows,
            num_inputs if num_rows == 1 else x.stride(0),
            weight.stride(0),
            num_outputs,
            num_inputs,
            HAS_BIAS=bias is not None,
            IS_WHOLE=num_inputs % tile.inner == 0,
            ROWS=tile.rows,
            OUTPUTS=tile.outputs,
            INNER=tile.inner,
            TOGETHER=tile.together,
            STAGES=tile.num_stages,
            num_warps=tile.num_warps,
            **launch_options(),
        )
    return out
