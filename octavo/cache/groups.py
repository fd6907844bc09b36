"""Layers to groups, groups to slabs: how one buffer holds pages of any sizes.

    buffer  | slab 0 (null) | slab 1            | slab 2        | slab 3 ...
              block 0         3 blocks of group 0   1 block of      (unowned)
              of each group   | b3 | b4 | b5 |      group 1: b2
    block   | layer 0's page | layer 1's page | ...               (the layers of its group, side by side)
    page    | part 0 | part 1 | ...                               (keys and values, or the tensors of a state)

A slab is as large as the largest block of any group, so a block is 16 tokens in every model, whatever else lives in
memory. Block b of group g lies at byte b * stride_g: slabs are a whole number of strides for every group. Where there
is one group, a platform may have pages of a layer side by side instead (worker/paged_cache.py); slabs are then no more
than a count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from octavo.cache.retention import Retention
from octavo.cache.spec import PART_ALIGNMENT, CacheSpec, PageLayout, round_up


@dataclass(frozen=True)
class CacheGroup:
    """Layers that share one block table, since they keep the same positions in blocks of the same tokens."""

    layers: tuple[str, ...]
    layouts: tuple[PageLayout, ...]  # parallel to `layers`
    retention: Retention
    tokens: int

    @property
    def block_bytes(self) -> int:
        return sum(layout.num_bytes for layout in self.layouts)

    def page_offsets(self) -> tuple[int, ...]:
        """Byte offset of each layer's page in a block."""
        offsets, at = [], 0
        for layout in self.layouts:
            offsets.append(at)
            at += layout.num_bytes
        return tuple(offsets)


@dataclass(frozen=True)
class SlabPlan:
    """Sizes in bytes. `blocks_per_slab` and `strides` are parallel to the groups."""

    slab_bytes: int
    blocks_per_slab: tuple[int, ...]
    strides: tuple[int, ...]

    def num_slabs(self, memory_bytes: int) -> int:
        """How many fit, the null slab included."""
        return memory_bytes // self.slab_bytes


def group_layers(specs: Mapping[str, CacheSpec]) -> tuple[CacheGroup, ...]:
    """Groups in the order of their first layers."""
    members: dict[tuple[int, Retention], list[tuple[str, PageLayout]]] = {}
    for layer, spec in specs.items():
        members.setdefault((spec.layout.tokens, spec.retention), []).append((layer, spec.layout))
    return tuple(
        CacheGroup(tuple(name for name, _ in layers), tuple(layout for _, layout in layers), retention, tokens)
        for (tokens, retention), layers in members.items()
    )


def plan_slabs(block_bytes: tuple[int, ...], alignment: int = PART_ALIGNMENT) -> SlabPlan:
    """The slab that fits every group's block, and each group's stride in it, with as little left over as possible.

    A slab must be a whole number of aligned strides for every group, so a group's count is a divisor of the slab's
    size in alignment units. Sizes a little above the largest block are tried, those with many divisors among them.
    """
    largest = -(-max(block_bytes) // alignment)  # in alignment units
    sizes = {round_up(largest, 1 << bits) for bits in range(13) if round_up(largest, 1 << bits) * 5 <= largest * 6}
    sizes.update(range(largest, largest + 33))
    best: tuple[float, int, tuple[int, ...]] | None = None
    for units in sorted(sizes):
        counts = tuple(_largest_divisor(units, units * alignment // size) for size in block_bytes)
        waste = max(units * alignment / (count * size) for count, size in zip(counts, block_bytes, strict=True))
        if best is None or waste < best[0]:
            best = (waste, units, counts)
    assert best is not None
    _, units, counts = best
    return SlabPlan(units * alignment, counts, tuple(units // count * alignment for count in counts))


def _largest_divisor(value: int, limit: int) -> int:
    """The largest divisor of `value` that is at most `limit` (at least 1)."""
    if limit >= value:
        return value
    best, small = 1, 1
    while small * small <= value:
        if value % small == 0:
            for divisor in (small, value // small):
                if best < divisor <= limit:
                    best = divisor
        small += 1
    return best
