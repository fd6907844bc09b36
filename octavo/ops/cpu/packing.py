"""Puts weights into panels, on all threads."""

from __future__ import annotations

import numpy as np
import torch

from octavo import _cpu
from octavo.ops.cpu.linear import NUMBER
from octavo.ops.packed import FORMATS, PackedWeight


def pack_numbers(values: torch.Tensor, weight: PackedWeight, part: int) -> None:
    """Fills a part with values [out_features, in_features], rounded to its format."""
    if values.dtype not in NUMBER:
        values = values.float()
    if values.stride(1) != 1:
        values = values.contiguous()
    target, rows = weight.part_data(part), weight.parts[part].out_features
    assert values.shape == (rows, weight.in_features), values.shape
    _cpu.pack_numbers(
        FORMATS.index(weight.parts[part].format),
        values.data_ptr(),
        NUMBER[values.dtype],
        values.stride(0),
        rows,
        weight.in_features,
        target.data_ptr(),
        target.nbytes,
    )


def pack_expanded(blocks: np.ndarray, format: str, weight: PackedWeight, part: int) -> None:
    """Fills a part that holds numbers with the values of GGUF blocks, uint8 [out_features, bytes of a row]."""
    blocks = np.ascontiguousarray(blocks)
    target = weight.part_data(part)
    _cpu.pack_expanded(
        FORMATS.index(format),
        blocks.ctypes.data,
        blocks.nbytes,
        weight.parts[part].out_features,
        weight.in_features,
        FORMATS.index(weight.parts[part].format),
        target.data_ptr(),
        target.nbytes,
    )


def layout() -> str:
    """A name of how packed weights lie in memory: another one where that is decided otherwise."""
    return str(_cpu.layout())


def checksum(data: torch.Tensor) -> int:
    """Of its bytes, of 64 bits, by all threads."""
    return int(_cpu.checksum(data.data_ptr(), data.nbytes))


def pack_blocks(blocks: np.ndarray, weight: PackedWeight, part: int) -> None:
    """Fills a part with GGUF blocks of its format, uint8 [out_features, bytes of a row]."""
    blocks = np.ascontiguousarray(blocks)
    target = weight.part_data(part)
    _cpu.pack_blocks(
        FORMATS.index(weight.parts[part].format),
        blocks.ctypes.data,
        blocks.nbytes,
        weight.parts[part].out_features,
        weight.in_features,
        target.data_ptr(),
        target.nbytes,
    )
