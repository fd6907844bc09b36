"""GGUF blocks that become numbers while they are packed, and the sum that tells whether packed bytes are whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from octavo.config.gguf_header import BLOCK_TYPES
from octavo.ops import dispatch
from octavo.ops.packed import BLOCK_LAYOUTS, PackedPart, PackedWeight
from octavo.ops.torch.linear import unpacked

if not dispatch.load("cpu"):
    pytest.skip(f"octavo's CPU kernels are not here: {dispatch.absent()['cpu']}", allow_module_level=True)

from octavo import _cpu
from octavo.ops.cpu.packing import checksum, pack_expanded, pack_numbers

CPU = torch.device("cpu")
BLOCKS = {block.name: block for block in BLOCK_TYPES.values()}
NUMBERS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def random_blocks(format: str, rows: int, inputs: int) -> np.ndarray:
    """Any bytes, but for scales (f16) that are no NaN: those are at the beginning of a block or at its end."""
    block = BLOCKS[format]
    drawn = np.random.default_rng(rows).integers(
        0, 256, (rows * inputs // block.block_size, block.block_bytes), np.uint8
    )
    places = [block.block_bytes - 2] if format == "Q6_K" else [0, 2] if BLOCK_LAYOUTS[format].has_minimum else [0]
    scales = np.random.default_rng(inputs).standard_normal((len(drawn), len(places))).astype(np.float16)
    for index, place in enumerate(places):
        drawn[:, place : place + 2] = scales[:, index : index + 1].view(np.uint8)
    return drawn.reshape(rows, -1)


@pytest.mark.parametrize("format", BLOCK_LAYOUTS)
@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize(("rows", "inputs"), [(16, 256), (37, 512), (1, 256)])
def test_expanded_blocks_are_what_the_gguf_package_says(format: str, numbers: str, rows: int, inputs: int) -> None:
    blocks = random_blocks(format, rows, inputs)
    values = torch.from_numpy(dequantize(blocks, GGMLQuantizationType[format]))
    part = PackedPart(numbers, rows)
    found = PackedWeight.empty(inputs, (part,), CPU)
    found.data.fill_(0x55)  # whatever was in memory
    pack_expanded(blocks, format, found, 0)
    expected = PackedWeight.empty(inputs, (part,), CPU)
    expected.data.fill_(0xAA)
    pack_numbers(values.to(NUMBERS[numbers]), expected, 0)
    size = part.num_bytes(inputs)
    assert torch.equal(found.data[:size], expected.data[:size]), "the padding too, which files keep"
    assert torch.equal(unpacked(found), values.to(NUMBERS[numbers]).float())


def test_what_does_not_fit_is_refused() -> None:
    weight = PackedWeight.empty(64, (PackedPart("BF16", 16),), CPU)
    with pytest.raises(ValueError, match="sizes do not fit"):
        pack_expanded(np.zeros((15, 36), np.uint8), "Q4_0", weight, 0)
    with pytest.raises(ValueError, match="blocks become numbers"):
        pack_expanded(np.zeros((16, 128), np.uint8), "BF16", weight, 0)


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_sum_tells_any_bit_and_the_length(size: int) -> None:
    data = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    whole = checksum(data)
    assert checksum(data.clone()) == whole and checksum(torch.cat([data, data.new_zeros(1)])) != whole
    places = {0, size // 2, size - 1, min(size - 1, 1 << 20)} if size else set()
    for place in places:
        for bit in (1, 128):
            data[place] ^= bit
            assert checksum(data) != whole, (place, bit)
            data[place] ^= bit
    assert checksum(data) == whole


def test_a_sum_is_the_same_whatever_the_threads() -> None:
    data = torch.arange(5 << 18, dtype=torch.int32)
    before = _cpu.num_threads()
    sums = []
    for count in (1, 3):
        _cpu.start_threads([-1] * count)
        sums.append(checksum(data))
    _cpu.start_threads([-1] * before)
    assert sums[0] == sums[1]
    blocks = data.view(5, 1 << 18)
    assert checksum(torch.cat([blocks[1:2], blocks[:1], blocks[2:]])) != sums[0], "pieces have an order"
