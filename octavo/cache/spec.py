"""What a layer must keep, on two axes: how a page looks (PageLayout) and which positions must stay (Retention)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from octavo.cache.retention import Retention

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "uint8": 1, "float8_e4m3fn": 1, "float8_e5m2": 1}
INT8_PER_TOKEN_HEAD = "int8_per_token_head"  # a type of keys and values: bytes, and a float32 that scales each head's
SCALE_BYTES = 4
KV_DTYPES = ("float32", "bfloat16", "float16", INT8_PER_TOKEN_HEAD)  # that octavo/ops has writes and reads for
PART_ALIGNMENT = 64  # bytes: a cache line, and enough for any vector load


@dataclass(frozen=True)
class PagePart:
    """One tensor inside a page. The layer sees [num_blocks, *shape] of it."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class PageLayout:
    """How one layer's page looks. `tokens` is what a page holds: block_size for keys and values; for a recurrent
    state, which belongs to a boundary between tokens, it is the block size whose boundaries can be kept."""

    tokens: int
    parts: tuple[PagePart, ...]

    @property
    def num_bytes(self) -> int:
        return sum(round_up(part.num_bytes, PART_ALIGNMENT) for part in self.parts)

    def offsets(self) -> tuple[int, ...]:
        """Byte offset of each part from the start of the page."""
        offsets, at = [], 0
        for part in self.parts:
            offsets.append(at)
            at += round_up(part.num_bytes, PART_ALIGNMENT)
        return tuple(offsets)


@dataclass(frozen=True)
class CacheSpec:
    """A layer declares one; nobody asks it what it is."""

    layout: PageLayout
    retention: Retention


def kv_layout(block_size: int, num_kv_heads: int, head_dim: int, dtype: str) -> PageLayout:
    """Keys and values of `block_size` tokens: one part "kv" of shape [2, block_size, num_kv_heads, head_dim]. Of int8 a
    head is SCALE_BYTES longer: its scale lies behind it, so that whatever moves or shares a block moves both."""
    if dtype == INT8_PER_TOKEN_HEAD:
        dtype, head_dim = "int8", head_dim + SCALE_BYTES
    return PageLayout(block_size, (PagePart("kv", (2, block_size, num_kv_heads, head_dim), dtype),))


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
