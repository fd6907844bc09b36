"""Matrix products of few rows: weights stream past once. Used only for the shapes of FASTER, where it was measured to
beat the vendor's library; every other product is that library's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch.nn import functional

from octavo.ops.triton.chain import announce, follow, launch_options

MOST_ROWS = 64
MOST_ROWS_BY_SUMS = 4


@dataclass(frozen=True)
class Tiling:
    """`outputs` a program, `inner` values of the sum at once, the sum in `split` parts; with tensor cores unless
    `by_sums`, which multiplies and adds."""

    by_sums: bool
    outputs: int
    inner: int
    split: int
    num_warps: int
    num_stages: int
    held: int = 0  # inputs whose weights are loaded while the kernel before still runs; `inner` at least


# (outputs O, inputs I) -> (most rows, tiling or None for the library), ascending by rows; above the last, the library.
# benchmarks/gpu_ops.py --linear measures each product alone and prints such lines. benchmarks/gpu_chain.py measures
# whole layers, where kernels overlap, and has the last word: Llama-8B's are from there.
FASTER: dict[tuple[int, int], tuple[tuple[int, Tiling | None], ...]] = {
    (4096, 1024): (
        (1, Tiling(by_sums=True, outputs=2, inner=1024, split=1, num_warps=4, num_stages=1)),
        (16, Tiling(by_sums=False, outputs=64, inner=128, split=1, num_warps=4, num_stages=4)),
    ),  # Qwen3-0.6B qkv
    (1024, 2048): (
        (1, Tiling(by_sums=True, outputs=2, inner=1024, split=1, num_warps=4, num_stages=1)),
        (4, Tiling(by_sums=False, outputs=64, inner=128, split=8, num_warps=4, num_stages=4)),
        (8, Tiling(by_sums=False, outputs=64, inner=256, split=8, num_warps=4, num_stages=3)),
        (16, Tiling(by_sums=False, outputs=64, inner=128, split=8, num_warps=4, num_stages=4)),
    ),  # Qwen3-0.6B out
    (6144, 1024): (
        (16, Tiling(by_sums=False, outputs=64, inner=256, split=1, num_warps=4, num_stages=3)),
    ),  # Qwen3-0.6B gate_up
    (1024, 3072): (
        (1, Tiling(by_sums=True, outputs=2, inner=1024, split=1, num_warps=4, num_stages=1)),
        (16, Tiling(by_sums=False, outputs=64, inner=128, split=8, num_warps=4, num_stages=4)),
    ),  # Qwen3-0.6B down
    (6144, 4096): (
        (16, Tiling(by_sums=False, outputs=64, inner=128, split=1, num_warps=4, num_stages=5)),
    ),  # Llama-8B qkv
    (4096, 4096): (
        (16, Tiling(by_sums=False, outputs=64, inner=128, split=4, num_warps=4, num_stages=3, held=256)),
    ),  # Llama-8B out
    (28672, 4096): (
        (16, Tiling(by_sums=False, outputs=64, inner=128, split=1, num_warps=4, num_stages=4)),
    ),  # Llama-8B gate_up
    (4096, 14336): (
        (16, Tiling(by_sums=False, outputs=64, inner=128, split=4, num_warps=4, num_stages=3, held=256)),
    ),  # Llama-8B down
    (128256, 4096): (
        (4, Tiling(by_sums=False, outputs=64, inner=128, split=1, num_warps=4, num_stages=4)),
    ),  # Llama-8B head
}


def tiling_of(num_rows: int, num_outputs: int, num_inputs: int) -> Tiling | None:
    """How to compute this shape, or None where the library is faster."""
    for most_rows, tiling in FASTER.get((num_outputs, num_inputs), ()):
        if num_rows <= most_rows:
            return tiling
    return None


def candidates(num_rows: int, num_outputs: int, num_inputs: int) -> list[Tiling]:
    """Tilings worth measuring for a shape."""
    found = []
    if num_rows <= MOST_ROWS_BY_SUMS:
        found += [Tiling(True, 4, 1024 // _power(num_rows), split, 4, 1) for split in (1, 2)]
        found += [Tiling(True, 8, 512 // _power(num_rows), split, 4, 3) for split in (1, 2)]
        found += [
            Tiling(True, 2, 1024 // _power(num_rows), 1, 4, 1),
            Tiling(True, 8, 1024 // _power(num_rows), 1, 8, 1),
        ]
    for outputs, inner, num_stages in ((64, 128, 4), (64, 256, 3), (128, 128, 3)):
        programs = triton.cdiv(num_outputs, outputs)
        splits = {1, *(split for split in (2, 4, 8) if programs * split <= 600 and programs * split >= 100)}
        found += [Tiling(False, outputs, inner, split, 4, num_stages) for split in sorted(splits)]
    return [tiling for tiling in found if num_inputs % (tiling.inner * tiling.split) == 0]


def _power(num_rows: int) -> int:
    return triton.next_power_of_2(num_rows)


@triton.jit
def _finish(
    total,  # float32, of one part
    at,  # where it belongs in [R, O]
    inside,
    bias,  # as `total`, of the program's outputs
    out_ptr,
    parts_ptr,  # [SPLIT, R, O] float32
    arrived_ptr,  # [programs of a part] int32: parts that are done; all zeros between launches
    size,  # R * O
    SPLIT: tl.constexpr,
):
    """Stores a tile. With several parts, the last to end adds them all, in order."""
    if SPLIT == 1:
        tl.store(out_ptr + at, (total + bias).to(out_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(parts_ptr + tl.program_id(1) * size + at, total, mask=inside)
        tl.debug_barrier()  # the whole program's stores come before the count
        arrived = arrived_ptr + tl.program_id(0)
        if tl.atomic_add(arrived, 1, sem="acq_rel") == SPLIT - 1:
            tl.store(arrived, 0)
            whole = tl.zeros_like(total)
            for part in tl.static_range(SPLIT):
                whole += tl.load(parts_ptr + part * size + at, mask=inside, other=0.0, cache_modifier=".cg")
            tl.store(out_ptr + at, (whole + bias).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _by_dots(
    x_ptr,
    x_stride,
    weight_ptr,
    weight_stride,
    bias_ptr,
    out_ptr,
    parts_ptr,
    arrived_ptr,
    num_rows,
    num_outputs,
    num_inputs,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INNER: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    HELD: tl.constexpr,
    CHAIN: tl.constexpr,
):
    """The weights are the left side: their many rows fill the tensor cores, which few rows of x would not. Those that
    come while x is being made wait in registers until the others have been summed, whose loads they do not delay."""
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    part = tl.program_id(1)
    row = tl.arange(0, ROWS)
    inner = tl.arange(0, INNER)
    size = num_inputs // (SPLIT * INNER) * INNER  # so the compiler sees what divides it
    real, wanted = (row < num_rows)[None, :], (output < num_outputs)[:, None]
    weight_ptrs = weight_ptr + output.to(tl.int64)[:, None] * weight_stride + part * size
    x_ptrs = x_ptr + row.to(tl.int64)[None, :] * x_stride + part * size
    ahead = tl.arange(0, HELD)
    announce(CHAIN)
    held = tl.load(weight_ptrs + ahead[None, :], mask=wanted, other=0.0)
    follow(CHAIN, True)
    weight_ptrs += inner[None, :]
    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for first in tl.range(HELD, size, INNER, num_stages=STAGES):
        weight = tl.load(weight_ptrs + first, mask=wanted, other=0.0)
        x = tl.load(x_ptrs + (first + inner)[:, None], mask=real, other=0.0)
        total = tl.dot(weight, x, total, input_precision="ieee")
    x = tl.load(x_ptrs + ahead[:, None], mask=real, other=0.0)
    total = tl.dot(held, x, total, input_precision="ieee")
    inside = (output < num_outputs)[:, None] & (row < num_rows)[None, :]
    bias = tl.zeros([OUTPUTS], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + output, mask=output < num_outputs, other=0.0).to(tl.float32)
    at = row[None, :] * num_outputs + output[:, None]
    _finish(total, at, inside, bias[:, None], out_ptr, parts_ptr, arrived_ptr, num_rows * num_outputs, SPLIT)


@triton.jit
def _by_sums(
    x_ptr,
    x_stride,
    weight_ptr,
    weight_stride,
    bias_ptr,
    out_ptr,
    parts_ptr,
    arrived_ptr,
    num_rows,
    num_outputs,
    num_inputs,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INNER: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    HELD: tl.constexpr,
    CHAIN: tl.constexpr,
):
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    part = tl.program_id(1)
    row = tl.arange(0, ROWS)
    inner = tl.arange(0, INNER)
    size = num_inputs // (SPLIT * INNER) * INNER  # so the compiler sees what divides it
    weight_ptrs = weight_ptr + output.to(tl.int64)[:, None] * weight_stride + (part * size + inner)[None, :]
    x_ptrs = x_ptr + row.to(tl.int64)[:, None] * x_stride + (part * size + inner)[None, :]
    weight = tl.load(weight_ptrs, mask=(output < num_outputs)[:, None], other=0.0).to(
        tl.float32
    )  # while x is being made
    follow(CHAIN)
    x = tl.load(x_ptrs, mask=(row < num_rows)[:, None], other=0.0).to(tl.float32)
    sums = weight[None, :, :] * x[:, None, :]
    for first in tl.range(INNER, size, INNER, num_stages=STAGES):
        weight = tl.load(weight_ptrs + first, mask=(output < num_outputs)[:, None], other=0.0).to(tl.float32)
        x = tl.load(x_ptrs + first, mask=(row < num_rows)[:, None], other=0.0).to(tl.float32)
        sums += weight[None, :, :] * x[:, None, :]
    total = tl.sum(sums, 2)
    inside = (row < num_rows)[:, None] & (output < num_outputs)[None, :]
    bias = tl.zeros([OUTPUTS], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + output, mask=output < num_outputs, other=0.0).to(tl.float32)
    at = row[:, None] * num_outputs + output[None, :]
    _finish(total, at, inside, bias[None, :], out_ptr, parts_ptr, arrived_ptr, num_rows * num_outputs, SPLIT)


def few_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tiling: Tiling) -> torch.Tensor:
    """x @ weight^T + bias for up to MOST_ROWS rows (MOST_ROWS_BY_SUMS); inputs divide by inner * split. Sums in
    float32, in an order that only the tiling decides."""
    num_rows, num_outputs = x.shape[0], weight.shape[0]
    assert x.shape[1] % (tiling.inner * tiling.split) == 0, (x.shape, tiling)
    out = torch.empty(num_rows, num_outputs, dtype=x.dtype, device=x.device)
    split, programs = tiling.split, triton.cdiv(num_outputs, tiling.outputs)
    parts = arrived = None
    if split > 1:
        parts = torch.empty(split, num_rows, num_outputs, dtype=torch.float32, device=x.device)
        arrived = _counters(programs, x.device)
    rows = _power(num_rows)
    kernel = _by_sums if tiling.by_sums else _by_dots
    kernel[(programs, split)](
        x,
        x.stride(0),
        weight,
        weight.stride(0),
        weight if bias is None else bias,
        out,
        parts,
        arrived,
        num_rows,
        num_outputs,
        x.shape[1],
        HAS_BIAS=bias is not None,
        ROWS=rows if tiling.by_sums else max(16, rows),
        OUTPUTS=tiling.outputs,
        INNER=tiling.inner,
        SPLIT=split,
        STAGES=tiling.num_stages,
        HELD=max(tiling.held, tiling.inner),
        num_warps=tiling.num_warps,
        **launch_options(),
    )
    return out


@cache
def _counters(number: int, device: torch.device) -> torch.Tensor:
    """Zeros, which every kernel leaves as zeros: kernels of one stream may all use the same."""
    return torch.zeros(number, dtype=torch.int32, device=device)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    if x.shape[0] <= MOST_ROWS and x.dtype == torch.bfloat16 and x.shape[0]:
        tiling = tiling_of(x.shape[0], *weight.shape)
        if tiling is not None:
            return few_rows(x, weight, bias, tiling)
    return functional.linear(x, weight, bias)
