"""Weights packed for octavo's CPU kernels: numbers in the model's dtype, or a GGUF file's blocks as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from octavo.distributed.shard import Shard
from octavo.ops.linear import gated_linear_packed, linear_packed, rows_packed
from octavo.ops.packed import BLOCK_LAYOUTS, NUMBER_FORMATS, PackedPart, PackedWeight, can_pack
from octavo.quantization.method import LinearLayer


class PackedLinear:
    """One layer's weight. `stored` are the types of the checkpoint's tensors that it is made of, part by part, or one
    for all parts; a part of a type that the kernels do not know is kept in the model's dtype."""

    def __init__(self, stored: Sequence[str] = ()) -> None:
        self.stored = tuple(stored)

    def create(self, layer: LinearLayer) -> None:
        sizes = layer.weight_shard.parts
        stored = self.stored * len(sizes) if len(self.stored) == 1 else self.stored
        dense = NUMBER_FORMATS[layer.dtype]
        formats = [
            name if name in BLOCK_LAYOUTS and can_pack(name, layer.in_features) else dense
            for name in stored or (dense,) * len(sizes)
        ]
        parts = tuple(PackedPart(name, size) for name, size in zip(formats, sizes, strict=True))
        self.weight = PackedWeight.empty(layer.in_features, parts, layer.device)
        parameter = torch.nn.Parameter(self.weight.data, requires_grad=False)
        parameter.shard = Shard(sizes, layer.weight_shard.dim)  # type: ignore[attr-defined]
        parameter.form = PackedForm(self.weight, layer.dtype)  # type: ignore[attr-defined]
        layer.register_parameter("weight", parameter)

    def apply(self, layer: LinearLayer, x: torch.Tensor) -> torch.Tensor:
        return linear_packed(x, self.weight, layer.bias)

    def apply_gated(self, layer: LinearLayer, x: torch.Tensor, activation: str) -> torch.Tensor:
        return gated_linear_packed(x, self.weight, layer.bias, activation)

    def embed(self, layer: LinearLayer, ids: torch.Tensor) -> torch.Tensor:
        return rows_packed(ids, self.weight, layer.dtype)

    def finalize(self, layer: LinearLayer) -> None:
        pass


class PackedForm:
    """How a checkpoint's tensors get into a packed parameter; satisfies loader/assign.py's Form."""

    def __init__(self, weight: PackedWeight, dtype: torch.dtype) -> None:
        self.weight, self.dtype = weight, dtype
        self.is_filled = False

    def adopt(self, parameter: torch.nn.Parameter, data: torch.Tensor) -> None:
        """Takes bytes that were packed before, as they lie."""
        assert data.shape == self.weight.data.shape and self.weight.handle is None, (data.shape, self.weight.parts)
        self.weight.data = parameter.data = data
        self.is_filled = True

    def shape(self, part: int | None) -> tuple[int, ...]:
        rows = self.weight.out_features if part is None else self.weight.parts[part].out_features
        return rows, self.weight.in_features

    def fill(self, part: int | None, source: Any) -> None:
        from octavo.ops.cpu.packing import pack_blocks, pack_expanded, pack_numbers  # absent where nothing was compiled

        indices = range(len(self.weight.parts)) if part is None else (part,)
        stored = getattr(source, "dtype", "")
        is_blocks = stored in BLOCK_LAYOUTS and can_pack(stored, self.weight.in_features)
        blocks = source.raw()[0] if is_blocks else None
        values = None if is_blocks else source.read()
        first = 0
        for index in indices:
            packed = self.weight.parts[index]
            rows = slice(first, first + packed.out_features)
            if blocks is None:
                assert values is not None and packed.format not in BLOCK_LAYOUTS, packed
                pack_numbers(values[rows], self.weight, index)
            elif packed.format in BLOCK_LAYOUTS:
                assert packed.format == stored, (packed, stored)
                pack_blocks(blocks[rows], self.weight, index)
            else:
                pack_expanded(blocks[rows], stored, self.weight, index)
            first += packed.out_features
