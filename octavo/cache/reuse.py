"""Does what is evicted come back? Decides whether new contents may displace older ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

MAX_EVICTED = 1 << 16  # entries: about 10 MB
_MEMORY = 16  # votes after which one has lost most of its weight


class ReuseHistory:
    """Evicting what was least recently used is right while visitors return sooner than that, and useless when they come
    in turn and there is not room for all: each is evicted just before it returns. So every first return votes: was its
    content still there, or would it have been, had the least recently used gone first? While most say no
    (`is_thrashing`), new contents are the first to go: those that have a place keep it, and in proportion to their
    number visits hit.
    """

    def __init__(self) -> None:
        self._evicted: OrderedDict[bytes, int] = OrderedDict()  # hash -> when it was last used, by the pool's clock
        self._share_in_time = 1.0

    @property
    def is_thrashing(self) -> bool:
        return self._share_in_time < 0.5

    def note_evicted(self, block_hash: bytes, last_used: int) -> None:
        """`last_used` is 0 for what went as the least recently used."""
        self._evicted[block_hash] = last_used
        self._evicted.move_to_end(block_hash)
        if len(self._evicted) > MAX_EVICTED:
            self._evicted.popitem(last=False)

    def last_used(self, hashes: Iterable[bytes]) -> int | None:
        """Of the first of these that was evicted."""
        return next((self._evicted[h] for h in hashes if h in self._evicted), None)

    def vote(self, in_time: bool) -> None:
        self._share_in_time += (in_time - self._share_in_time) / _MEMORY
