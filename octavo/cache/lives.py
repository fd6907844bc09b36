"""How long cached blocks live, lie idle and wait to be used again: a sample of them, watched."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from octavo.cache.block import Block
from octavo.core.messages import BlockLife

_MAX_HITS = 4  # of one block that are remembered: the last ones


@dataclass(slots=True)
class _Watched:
    born: float
    hits: deque[float] = field(default_factory=lambda: deque(maxlen=_MAX_HITS))


class BlockLives:
    """Hears of a BlockPool's blocks. Watches `share` (0 to 1) of those that are taken, drawn at random, and remembers
    at most one for each block there is."""

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic, seed: int = 0) -> None:
        self._share, self._clock, self._random = share, clock, random.Random(seed)
        self._watched: dict[tuple[int, int], _Watched] = {}
        self._ended: list[BlockLife] = []

    def taken(self, block: Block) -> None:
        key = (block.group, block.block_id)
        if self._random.random() < self._share:
            self._watched[key] = _Watched(self._clock())
        else:
            self._watched.pop(key, None)  # was given back without ever having been cached

    def touched(self, block: Block) -> None:
        watched = self._watched.get((block.group, block.block_id))
        if watched is not None:
            watched.hits.append(self._clock())

    def evicted(self, block: Block) -> None:
        watched = self._watched.pop((block.group, block.block_id), None)
        if watched is None:
            return
        now, hits = self._clock(), list(watched.hits)
        gaps = [later - earlier for earlier, later in pairwise(hits)]
        self._ended.append(BlockLife(now - watched.born, now - (hits[-1] if hits else watched.born), gaps))

    def take(self) -> list[BlockLife] | None:
        """Those that have ended since the last call, if any."""
        ended, self._ended = self._ended, []
        return ended or None
