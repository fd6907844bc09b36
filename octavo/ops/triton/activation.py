"""Gated activations in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.ops.triton.chain import follow, launch_options

SILU, GELU, GELU_TANH = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _gated(x_ptr, out_ptr, stride, size, KIND: tl.constexpr, BLOCK: tl.constexpr, CHAIN: tl.constexpr):
    follow(CHAIN)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    gate = tl.load(x_ptr + row * stride + column, mask=inside, other=0.0)
    up = tl.load(x_ptr + row * stride + size + column, mask=inside, other=0.0)
    x = gate.to(tl.float32)
    if KIND == SILU:
        opened = x / (1.0 + tl.exp(-x))
    elif KIND == GELU:
        opened = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:  # (1 + tanh(y)) / 2 = 1 / (1 + exp(-2 y))
        y = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        opened = x / (1.0 + tl.exp(-2.0 * y))
    out = opened.to(gate.dtype).to(tl.float32) * up.to(tl.float32)
    tl.store(out_ptr + row * size + column, out.to(gate.dtype), mask=inside)


def _run(x: torch.Tensor, kind: tl.constexpr, tile_rows: int | None) -> torch.Tensor:
    """Tiles are as for `tile_rows` rows, if it says how many."""
    num_rows, size = x.shape[0], x.shape[1] // 2
    out = torch.empty(num_rows, size, dtype=x.dtype, device=x.device)
    if num_rows:
        block = min(triton.next_power_of_2(size), 512 if (tile_rows or num_rows) <= 16 else 2048)
        grid = (num_rows, triton.cdiv(size, block))
        _gated[grid](
            x, out, x.stride(0), size, KIND=kind, BLOCK=block, num_warps=max(1, block // 512), **launch_options()
        )
    return out


def silu_and_mul(x: torch.Tensor, tile_rows: int | None = None) -> torch.Tensor:
    return _run(x, SILU, tile_rows)


def gelu_and_mul(x: torch.Tensor, tile_rows: int | None = None) -> torch.Tensor:
    return _run(x, GELU, tile_rows)


def gelu_tanh_and_mul(x: torch.Tensor, tile_rows: int | None = None) -> torch.Tensor:
    return _run(x, GELU_TANH, tile_rows)
