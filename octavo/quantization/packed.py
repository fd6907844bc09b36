"""Weights packed for octavo's CPU kernels: numbers in the model's dtype, or a GGUF file's blocks as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from octavo.distributed.shard import Shard
from octavo.ops.linear import linear_packed, rows_packed
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
        parameter.form = _PackedForm(self.weight, layer.dtype)  # type: ignore[attr-defined]
        layer.register_parameter("weight", parameter)

    def apply(self, layer: LinearLayer, x: torch.Tensor) -> torch.Tensor:
        return linear_packed(x, self.weight, layer.bias)

    def embed(self, layer: LinearLayer, ids: torch.Tensor) -> torch.Tensor:
        return rows_packed(ids, self.weight, layer.dtype)

    def finalize(self, layer: LinearLayer) -> None:
        pass


class _PackedForm:
    """How a checkpoint's tensors get into a packed parameter; satisfies loader/assign.py's Form."""

    def __init__(self, weight: PackedWeight, dtype: torch.dtype) -> None:
        self._weight, self.dtype = weight, dtype

    def shape(self, part: int | None) -> tuple[int, ...]:
        rows = self._weight.out_features if part is None else self._weight.parts[part].out_features
        return rows, self._weight.in_features

    def fill(self, part: int | None, source: Any) -> None:
        from octavo.ops.cpu.packing import pack_blocks, pack_numbers  # absent where nothing was compiled

        indices = range(len(self._weight.parts)) if part is None else (part,)
        parts = [self._weight.parts[index] for index in indices]
        blocks = source.raw()[0] if any(packed.format in BLOCK_LAYOUTS for packed in parts) else None
        values = source.read() if any(packed.format not in BLOCK_LAYOUTS for packed in parts) else None
        first = 0
        for index, packed in zip(indices, parts, strict=True):
            rows = slice(first, first + packed.out_features)
            if packed.format in BLOCK_LAYOUTS:
                assert blocks is not None
                pack_blocks(blocks[rows], self._weight, index)
            else:
                assert values is not None
                pack_numbers(values[rows], self._weight, index)
            first += packed.out_features
