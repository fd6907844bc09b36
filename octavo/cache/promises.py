"""Blocks that admitted prompts are yet to take, so that nobody else is admitted on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.cache.tables import PagedTable, StateTable


@dataclass(slots=True)
class Promise:
    """Blocks that a prompt will hold at its peak, and how many of them it does not hold yet, by group."""

    peaks: list[int]
    left: list[int]


class Promises:
    """Of the CacheManager. `total` is the sum of what is left of them, by group."""

    def __init__(self, num_groups: int) -> None:
        self.of: dict[str, Promise] = {}  # request id: an admitted prompt that is not yet computed
        self.total = [0] * num_groups

    def make(self, request_id: str, peaks: list[int], tables: Sequence[PagedTable | StateTable]) -> None:
        self.of[request_id] = Promise(peaks, [0] * len(peaks))
        self.count(request_id, tables)

    def count(self, request_id: str, tables: Sequence[PagedTable | StateTable]) -> None:
        """The blocks of this request changed: so does what is left of its promise, if it has one."""
        promise = self.of.get(request_id)
        if promise is not None:
            for group, table in enumerate(tables):
                left = max(0, promise.peaks[group] - table.live)
                self.total[group] += left - promise.left[group]
                promise.left[group] = left

    def keep(self, request_id: str) -> None:
        """It has what it was promised, or needs it no more."""
        promise = self.of.pop(request_id, None)
        if promise is not None:
            for group, left in enumerate(promise.left):
                self.total[group] -= left
