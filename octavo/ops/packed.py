"""Weights as kernels want them: packed once into panels of 16 outputs, numbers or GGUF blocks alike.

csrc/cpu/packing.h draws the layout; octavo/ops/torch/linear.py reads it back in plain torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

# The order is that of `enum class Format`.
FORMATS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
NUMBER_FORMATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
QUANTIZED_FORMATS = FORMATS[3:]

PANEL = 16  # outputs side by side
BLOCK = 32  # inputs of a quantised block
GROUP = 8  # blocks that share a head
_ALIGNMENT = 64  # bytes


class BlockLayout(NamedTuple):
    """Of a quantised format: a value is scale * (q - offset) + minimum. Sizes in bytes, of a panel's block."""

    bits: int
    offset: int
    has_minimum: bool
    head_bytes: int  # once for GROUP blocks
    scale_bytes: int

    @property
    def block_bytes(self) -> int:
        return self.scale_bytes + (512 if self.bits == 8 else 256 + 64 * (self.bits - 4))


BLOCK_LAYOUTS = {
    "Q4_0": BlockLayout(4, 8, False, 0, 32),
    "Q4_1": BlockLayout(4, 0, True, 0, 64),
    "Q5_0": BlockLayout(5, 16, False, 0, 32),
    "Q5_1": BlockLayout(5, 0, True, 0, 64),
    "Q8_0": BlockLayout(8, 128, False, 0, 32),
    "Q4_K": BlockLayout(4, 0, True, 64, 32),
    "Q5_K": BlockLayout(5, 0, True, 64, 32),
    "Q6_K": BlockLayout(6, 32, False, 32, 32),
}


class PackedPart(NamedTuple):
    """Rows of one format."""

    format: str
    out_features: int

    def num_bytes(self, in_features: int) -> int:
        panels = -(-self.out_features // PANEL)
        if self.format in BLOCK_LAYOUTS:
            layout = BLOCK_LAYOUTS[self.format]
            blocks = in_features // BLOCK
            return panels * (blocks * layout.block_bytes + blocks // GROUP * layout.head_bytes)
        if self.format == "BF16":
            return panels * -(-in_features // BLOCK) * BLOCK * PANEL * 2
        return panels * in_features * PANEL * (4 if self.format == "F32" else 2)


@dataclass(eq=False)
class PackedWeight:
    """[sum of the parts' out_features, in_features] in `data`, uint8 [num_bytes]: part after part, each from a multiple
    of 64 bytes on. `handle` is the kernels' own record, made when it is first used; `data` does not move after that."""

    in_features: int
    parts: tuple[PackedPart, ...]
    data: torch.Tensor
    handle: Any = None

    @staticmethod
    def empty(in_features: int, parts: tuple[PackedPart, ...], device: torch.device) -> PackedWeight:
        num_bytes = sum(_aligned(part.num_bytes(in_features)) for part in parts)
        return PackedWeight(in_features, parts, torch.empty(num_bytes, dtype=torch.uint8, device=device))

    @property
    def out_features(self) -> int:
        return sum(part.out_features for part in self.parts)

    def part_data(self, index: int) -> torch.Tensor:
        """The bytes of one part."""
        start = sum(_aligned(part.num_bytes(self.in_features)) for part in self.parts[:index])
        return self.data[start : start + self.parts[index].num_bytes(self.in_features)]


def can_pack(format: str, in_features: int) -> bool:
    """Is this a format of kernels, and are rows of that many inputs whole blocks of it?"""
    if format not in BLOCK_LAYOUTS:
        return format in FORMATS
    return in_features % (BLOCK * GROUP if BLOCK_LAYOUTS[format].head_bytes else BLOCK) == 0


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
