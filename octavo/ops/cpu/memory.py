"""Where results of these ops lie: torch's memory or, while a step is recorded on a tape, memory that stays."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

ALIGNMENT = 64  # bytes


class Arena:
    """Memory of a recorded step. What is taken is given back when the tensor and all views of it are gone, and taken
    again by a later result of the same size, so the step needs as much as when it ran the first time. Several tapes may
    lie over one arena, as only one of them runs at a time."""

    def __init__(self, chunk_bytes: int = 1 << 22) -> None:
        self._chunk_bytes = chunk_bytes
        self._chunks: list[np.ndarray] = []
        self._given_back: dict[int, list[np.ndarray]] = {}  # by size
        self._chunk = self._used = 0
        self.num_bytes = 0

    def begin(self) -> None:
        """All of it is free again, for another tape."""
        self._given_back = {}
        self._chunk = self._used = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        num_bytes = math.prod(shape) * dtype.itemsize
        size = -(-num_bytes // ALIGNMENT) * ALIGNMENT
        given_back = self._given_back.setdefault(size, [])
        block = given_back.pop() if given_back else self._take(size)
        lent = block[:num_bytes]  # an array of its own, which torch holds for as long as a tensor lies over it
        weakref.finalize(lent, given_back.append, block)
        return torch.from_numpy(lent).view(dtype).view(shape)

    def _take(self, size: int) -> np.ndarray:
        while self._chunk < len(self._chunks) and self._used + size > len(self._chunks[self._chunk]):
            self._chunk, self._used = self._chunk + 1, 0
        if self._chunk == len(self._chunks):
            num_bytes = max(self._chunk_bytes, size)
            memory = np.empty(num_bytes + ALIGNMENT, dtype=np.uint8)
            first = -memory.ctypes.data % ALIGNMENT
            self._chunks.append(memory[first : first + num_bytes])
            self.num_bytes += num_bytes
        block = self._chunks[self._chunk][self._used : self._used + size]
        self._used += size
        return block


_arena: Arena | None = None


@contextmanager
def results_in(arena: Arena) -> Iterator[None]:
    """Results of ops lie in `arena`."""
    global _arena
    assert _arena is None, "one step is recorded at a time"
    arena.begin()
    _arena = arena
    try:
        yield
    finally:
        _arena = None


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A contiguous tensor without values, from a multiple of 64 bytes on: for the results of ops."""
    return torch.empty(shape, dtype=dtype) if _arena is None else _arena.empty(shape, dtype)
