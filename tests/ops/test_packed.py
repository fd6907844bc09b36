"""Packed weights: the layout against the gguf package, products against float64, each instruction set in turn."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from torch.nn import functional

from octavo.config.gguf_header import BLOCK_TYPES
from octavo.ops import dispatch
from octavo.ops.packed import BLOCK_LAYOUTS, FORMATS, PackedPart, PackedWeight, can_pack
from octavo.ops.torch.linear import unpacked

if not dispatch.load("cpu"):
    pytest.skip(f"octavo's CPU kernels are not here: {dispatch.absent()['cpu']}", allow_module_level=True)

from octavo import _cpu
from octavo.ops.cpu.packing import pack_blocks, pack_numbers

CPU = torch.device("cpu")
BLOCKS = {block.name: block for block in BLOCK_TYPES.values()}
NUMBERS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SHAPES = [(16, 256), (48, 768), (37, 512), (1, 256)]  # (outputs, inputs)
ROWS = [1, 2, 3, 7, 8, 16, 17, 33, 70]
# Most that a product may be off, in units of |x| |w| / sqrt(inputs), its own standard deviation if both were random: x
# is rounded to 8 bits in blocks where rows are few, weights and x to bf16 where they are many. Five times what rounding
# each number by itself comes to, on average.
ROUNDED = 3e-2
EXACT = 2e-5


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    _cpu.start_threads([-1] * request.param)
    yield request.param
    _cpu.start_threads([-1])


def random_blocks(format: str, outputs: int, inputs: int, seed: int = 0) -> np.ndarray:
    """Every bit random but for the scales, which are numbers of ordinary size and either sign."""
    generator = np.random.default_rng(seed)
    block = BLOCKS[format]
    blocks = generator.integers(0, 256, (outputs, inputs // block.block_size, block.block_bytes), dtype=np.uint8)
    places = {"Q6_K": (208,), "Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,)}.get(format, (0, 2))
    for place in places:
        scales = generator.standard_normal((*blocks.shape[:2], 1)).astype(np.float16) / np.float16(64)
        blocks[:, :, place : place + 2] = scales.view(np.uint8)
    return blocks.reshape(outputs, -1)


def make(format: str, outputs: int, inputs: int, seed: int = 0) -> tuple[PackedWeight, torch.Tensor]:
    """A weight of one part, and its values as float32 by other code than ours."""
    weight = PackedWeight.empty(inputs, (PackedPart(format, outputs),), CPU)
    weight.data.random_(0, 256)  # padding must not matter
    return weight, fill(weight, 0, seed)


def fill(weight: PackedWeight, part: int, seed: int = 0) -> torch.Tensor:
    format, outputs = weight.parts[part]
    if format in BLOCK_LAYOUTS:
        blocks = random_blocks(format, outputs, weight.in_features, seed)
        pack_blocks(blocks, weight, part)
        return torch.from_numpy(dequantize(blocks, GGMLQuantizationType[format]))
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(outputs, weight.in_features, generator=generator).to(NUMBERS[format])
    pack_numbers(values, weight, part)
    return values.float()


def error(found: torch.Tensor, x: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None = None) -> float:
    """In the units of ROUNDED, the most of any element."""
    x, values = x.double(), values.double()
    expected = x @ values.t() + (0 if bias is None else bias.double())
    assert found.shape == expected.shape and found.is_contiguous()
    scale = torch.outer(x.norm(dim=1), values.norm(dim=1)) / x.shape[1] ** 0.5
    return float(((found.double() - expected).abs() / scale).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_lost_by_packing(format: str, shape: tuple[int, int], threads: int) -> None:
    weight, values = make(format, *shape)
    assert weight.data.nbytes == _cpu.packed_bytes(FORMATS.index(format), *shape) + -weight.part_data(0).nbytes % 64
    assert torch.equal(unpacked(weight), values)
    ids = torch.randint(0, shape[0], (9,))
    for implementation in dispatch.present()["rows_packed"]:
        run = dispatch.implementation_of("rows_packed", implementation)
        assert torch.equal(run(ids, weight, torch.float32), values[ids]), implementation
        assert torch.equal(run(ids, weight, torch.bfloat16), values[ids].bfloat16()), implementation


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", FORMATS)
def test_products(format: str, shape: tuple[int, int], isa: str) -> None:
    weight, values = make(format, *shape)
    run = dispatch.implementation_of("linear_packed", "cpu")
    specification = dispatch.implementation_of("linear_packed", "torch")
    for rows in ROWS:
        generator = torch.Generator().manual_seed(rows)
        x = torch.randn(rows, shape[1], generator=generator)
        bias = torch.randn(shape[0], generator=generator)
        # columns of a wider tensor: rows further apart than they are long
        x = torch.cat((x, torch.full((rows, 5), torch.nan)), 1)[:, : shape[1]]
        found = run(x, weight, bias)
        exact = format == "F32" or (format in NUMBERS and (isa != "amx" or rows <= 4))
        assert error(found, x, values, bias) < (EXACT if exact else ROUNDED), rows
        assert error(specification(x, weight, bias), x, values, bias) < EXACT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("format", ["BF16", "F16", "Q4_1", "Q6_K"])
def test_short_numbers_in_and_out(format: str, dtype: torch.dtype, isa: str) -> None:
    weight, values = make(format, 40, 256)
    bias = torch.randn(40).to(dtype)
    for rows in (1, 5, 40):
        x = torch.randn(rows, 256).to(dtype)
        found = dispatch.implementation_of("linear_packed", "cpu")(x, weight, bias)
        assert found.dtype == dtype
        assert error(found, x, values, bias) < ROUNDED


@pytest.mark.parametrize("format", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("inputs", [1, 31, 33, 40])
def test_inputs_that_fill_no_block(format: str, inputs: int, isa: str) -> None:
    weight, values = make(format, 20, inputs)
    for rows in (1, 3, 20):
        x = torch.randn(rows, inputs)
        found = dispatch.implementation_of("linear_packed", "cpu")(x, weight, None)
        assert error(found, x, values) < ROUNDED


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("formats", [("BF16", "BF16"), ("Q4_1", "Q4_1"), ("F32", "F32"), ("Q8_0", "Q6_K")])
def test_gated_linear_packed(formats: tuple[str, str], dtype: torch.dtype, isa: str) -> None:
    size = 41  # so that the up part begins with a panel of its own, and the last one is not full
    weight = PackedWeight.empty(512, tuple(PackedPart(format, size) for format in formats), CPU)
    values = torch.cat([fill(weight, part, seed=part) for part in range(2)])
    values, scale = values / values.norm(dim=1, keepdim=True), values.norm(dim=1)
    gates = {
        "silu": functional.silu,
        "gelu": functional.gelu,
        "gelu_tanh": lambda gate: functional.gelu(gate, approximate="tanh"),
    }
    for rows in (1, 9, 40):
        x = torch.randn(rows, 512) / float(scale.mean())
        x = x.to(dtype)
        for bias in (None, torch.randn(2 * size)):
            gate, up = (x.double() @ (values * scale[:, None]).double().t() + (0 if bias is None else bias)).chunk(2, 1)
            for name, function in gates.items():
                for implementation in ("cpu", "torch"):
                    run = dispatch.implementation_of("gated_linear_packed", implementation)
                    found = run(x, weight, bias, name)
                    assert found.shape == (rows, size) and found.dtype == dtype and found.is_contiguous()
                    exact = implementation == "torch" and dtype == torch.float32
                    # an error of each factor times the other
                    room = (EXACT if exact else ROUNDED) * (1 + gate.abs() + up.abs())
                    off = (found.double() - function(gate) * up).abs()
                    assert bool((off < room).all()), (rows, name, implementation)


def test_parts_of_several_formats(isa: str, threads: int) -> None:
    """As query, key and value of one file may be stored; each part ends in the middle of a panel."""
    parts = (PackedPart("Q5_0", 40), PackedPart("Q8_0", 7), PackedPart("BF16", 19), PackedPart("Q4_K", 33))
    weight = PackedWeight.empty(512, parts, CPU)
    values = torch.cat([fill(weight, part, seed=part) for part in range(len(parts))])
    assert torch.equal(unpacked(weight), values)
    bias = torch.randn(99)
    for rows in (1, 6, 50):
        x = torch.randn(rows, 512)
        found = dispatch.implementation_of("linear_packed", "cpu")(x, weight, bias)
        assert error(found, x, values, bias) < ROUNDED
    ids = torch.tensor([0, 39, 40, 46, 47, 65, 66, 98])
    assert torch.equal(dispatch.implementation_of("rows_packed", "cpu")(ids, weight, torch.float32), values[ids])


@pytest.mark.parametrize("format", ["BF16", "F16", "Q4_0"])
def test_tiles_that_rows_and_outputs_do_not_fill(format: str, isa: str) -> None:
    """The last rows of a matrix of bf16 are gone over twice, and panels pass in groups: here three, the last of one."""
    weight, values = make(format, 267, 96)
    run = dispatch.implementation_of("linear_packed", "cpu")
    for rows in (1, 15, 17, 31, 33, 70):
        wide = torch.randn(rows + 1, 200).bfloat16()
        x = wide[:rows, 32:128]
        found = run(x, weight, None)
        assert error(found, x, values) < ROUNDED
        if isa == "amx" and format == "BF16":  # as alone, to the bit
            for row in {0, rows // 2, rows - 1}:
                assert torch.equal(found[row : row + 1], run(x[row : row + 1], weight, None))


@pytest.mark.parametrize("format", ["BF16", "Q4_1", "Q8_0"])
def test_many_rows_over_several_threads_and_pieces(format: str, threads: int, isa: str) -> None:
    """More rows than stay in a cache at once, so that they pass in pieces."""
    weight, values = make(format, 100, 4096)
    x = torch.randn(200, 4096)
    found = dispatch.implementation_of("linear_packed", "cpu")(x, weight, None)
    assert error(found, x, values) < ROUNDED
    assert torch.equal(found, dispatch.implementation_of("linear_packed", "cpu")(x, weight, None))


def test_a_row_does_not_depend_on_its_neighbours(isa: str) -> None:
    """One that is not finite stays alone; and zeros are exactly zero."""
    weight, _ = make("Q4_0", 32, 256)
    for rows, place in ((3, 0), (3, 17), (3, 255), (40, 17)):
        x = torch.randn(rows, 256)
        x[1, place] = torch.nan if place else torch.inf
        x[2] = 0.0
        found = dispatch.implementation_of("linear_packed", "cpu")(x, weight, None)
        assert found[2].count_nonzero() == 0
        assert found[0].isfinite().all()
        assert not found[1].isfinite().any()


def test_what_does_not_fit_is_refused() -> None:
    assert not can_pack("Q4_K", 288) and can_pack("Q4_0", 288) and not can_pack("Q2_K", 256)
    with pytest.raises(ValueError, match="no multiple of 256"):
        _cpu.packed_bytes(FORMATS.index("Q4_K"), 16, 288)
    with pytest.raises(ValueError, match="no such format"):
        _cpu.packed_bytes(len(FORMATS), 16, 256)
    with pytest.raises(ValueError, match="do not fit"):
        _cpu.Linear(256, [(FORMATS.index("Q4_0"), 16, 0, 17)])
    with pytest.raises(ValueError, match="instruction set sse9"):
        _cpu.set_isa("sse9")
    with pytest.raises(ValueError, match="own or openmp"):
        _cpu.start_threads([-1], "mpi")
    weight, _ = make("BF16", 20, 32)
    for id in (-1, 20):
        with pytest.raises(IndexError):
            dispatch.implementation_of("rows_packed", "cpu")(torch.tensor([id]), weight, torch.float32)


def test_every_instruction_set_of_this_machine_is_here() -> None:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = set(next(line for line in file if line.startswith(("flags", "Features"))).split())
    wanted = {"avx2": {"avx2", "fma", "f16c"}, "avx512": {"avx512bw", "avx512_vnni"}, "amx": {"amx_bf16", "amx_int8"}}
    expected = ["generic", *(name for name, needs in wanted.items() if needs <= flags)]
    assert _cpu.isas() == expected
    assert _cpu.isa() == expected[-1]


@pytest.mark.parametrize("kind", ["own", "openmp"])
def test_both_kinds_of_threads(kind: str) -> None:
    weight, values = make("BF16", 512, 256)
    x = torch.randn(64, 256)
    _cpu.start_threads([-1, -1], kind)
    try:
        assert (_cpu.num_threads(), _cpu.threads_kind()) == (2, kind)
        for _ in range(50):
            found = dispatch.implementation_of("linear_packed", "cpu")(x, weight, None)
            assert error(found, x, values) < ROUNDED
    finally:
        _cpu.start_threads([-1])
