"""The cache's memory: one flat buffer, and each layer's view of its pages (drawn in cache/groups.py)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from octavo.cache.groups import CacheGroup, SlabPlan
from octavo.ops.memory import zeroed_buffer
from octavo.runner.model import Model


class PagedCache:
    """`parts[layer][part]` is [num_blocks, *shape]. All zeros at first, so that a place which was never written cannot
    bring NaN into a masked sum. `by_layer`: a group that has all memory to itself keeps each layer's pages together
    instead of each block's, which spares a processor's address translation."""

    def __init__(
        self,
        groups: Sequence[CacheGroup],
        slabs: SlabPlan,
        num_slabs: int,
        device: torch.device,
        by_layer: bool = False,
    ) -> None:
        self.num_slabs = num_slabs
        self.num_bytes = num_slabs * slabs.slab_bytes
        self._buffer = zeroed_buffer(self.num_bytes, device)
        self.parts: dict[str, dict[str, torch.Tensor]] = {}
        self.group_of: dict[str, int] = {}
        self._runs: list[list[torch.Tensor]] = []  # by group: [num_blocks, bytes], a block's content together
        is_apart = by_layer and len(groups) == 1
        for index, group in enumerate(groups):
            num_blocks = num_slabs * slabs.blocks_per_slab[index]
            runs = []
            for layer, layout, page in zip(group.layers, group.layouts, group.page_offsets(), strict=True):
                start, stride = (num_blocks * page, layout.num_bytes) if is_apart else (page, slabs.strides[index])
                if is_apart:
                    runs.append(self._buffer[start : start + num_blocks * stride].view(num_blocks, stride))
                self.group_of[layer] = index
                self.parts[layer] = {
                    part.name: self._view(num_blocks, stride, start + offset, part.shape, part.dtype)
                    for part, offset in zip(layout.parts, layout.offsets(), strict=True)
                }
            self._runs.append(runs or [self._buffer.view(num_blocks, slabs.strides[index])])

    def bind(self, model: Model) -> None:
        """Gives the model's stateful layers their views."""
        model.bind_caches(self.parts, self.group_of)

    def unbind(self, model: Model) -> None:
        """Has them let go of these, so that the memory can be given back."""
        model.bind_caches({layer: {} for layer in self.parts}, self.group_of)

    def release(self, model: Model) -> None:
        """Gives the memory back. Whoever still holds this finds nothing in it; may be called again."""
        self.unbind(model)
        self._buffer = self._buffer.new_empty(0)
        self.parts = {layer: {} for layer in self.parts}
        self._runs, self.num_slabs, self.num_bytes = [], 0, 0

    def copy(self, group: int, source: int, target: int) -> None:
        """One block's content, all layers of its group."""
        for blocks in self._runs[group]:
            blocks[target] = blocks[source]

    def _view(self, num_blocks: int, stride: int, offset: int, shape: tuple[int, ...], dtype_name: str) -> torch.Tensor:
        dtype = getattr(torch, dtype_name)
        typed = self._buffer.view(dtype)
        inner = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        return typed.as_strided(
            (num_blocks, *shape), (stride // dtype.itemsize, *inner), offset // dtype.itemsize
        )  # fmt: skip

    def scrub(self, blocks: Mapping[int, Iterable[int]]) -> None:
        """Replaces what is not finite in these blocks (by group) by zeros. A block may be taken again by anyone, and a
        masked position still multiplies its value by zero."""
        for layer, parts in self.parts.items():
            block_ids = list(blocks.get(self.group_of[layer], ()))
            if block_ids:
                for view in parts.values():
                    if view.dtype.is_floating_point:
                        view[block_ids] = torch.nan_to_num(view[block_ids], nan=0.0, posinf=0.0, neginf=0.0)
