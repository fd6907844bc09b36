"""Which rows begin with the same blocks, so that attention can read these once for all of them.

Rows that decode are kept in a tree by their leading blocks. It changes when a row comes or goes, and a row that shares
nothing costs an entry in a dictionary:

    root --- blocks 1..128 --- fork --- blocks 201..240 --- fork --- rows D, E, F, G      (a group: 168 blocks)
        |                          \\-- rows A, B, C, H, ...                              (a group: 128 blocks)
        \\-- row Z
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from octavo.cache.manager import CacheManager
from octavo.core.request import Request
from octavo.core.step import MAX_PREFIX_GROUPS

Group = tuple[list[str], int]  # requests, and how many leading blocks they share


@dataclass(frozen=True)
class PrefixLimits:
    """What is worth a kernel of its own. A prefix read apart costs each row the read and write of its parts, as much as
    some 100 to 200 tokens of its own keys; and each layer a launch, some microseconds, in which a Hopper GPU reads the
    keys of 8,192 tokens (8 heads of 128 in 16 bits)."""

    min_rows: int = 4
    min_tokens: int = 256  # that a group shares; the kernel does not split fewer
    min_saved: int = 8192  # tokens that all groups together need not read again


@dataclass(slots=True, eq=False)
class _Fork:
    """Where rows part that share `chain[:depth]`. All but the root have two ways on, or more."""

    chain: list[int]
    depth: int
    parent: _Fork | None
    rows: dict[str, None] = field(default_factory=dict)  # that have the next block for themselves, or none
    row_at: dict[int, str] = field(default_factory=dict)  # those that have one, by it
    forks: dict[int, _Fork] = field(default_factory=dict)  # by the next block
    num_rows: int = 0  # from here on: set by `_find`
    saved: int = 0  # blocks that need not be read again
    joined: list[_Fork] | None = None  # what forms one group with `rows`; None: there is none
    apart: list[_Fork] = field(default_factory=list)  # what goes its own ways


class SharedPrefixes:
    """Owned by the scheduler."""

    def __init__(self, cache: CacheManager, limits: PrefixLimits | None = None) -> None:
        self._cache = cache
        self._limits = limits or PrefixLimits()
        self._min_blocks = max(1, self._limits.min_tokens // cache.block_size)
        self._root = _Fork([], 0, None)
        self._places: dict[str, tuple[_Fork, list[int]]] = {}
        self._joining: dict[str, list[int]] = {}
        self._found: list[Group] = []
        self._is_stale = False

    def join(self, request: Request) -> None:
        """From the next step on this row decodes. (The step being planned may yet write its blocks.)"""
        if request.request_id not in self._places and request.request_id not in self._joining:
            chain = self._cache.leading_blocks(request)
            if len(chain) >= self._min_blocks:
                self._joining[request.request_id] = chain

    def leave(self, request_id: str) -> None:
        """Its blocks are given back."""
        self._joining.pop(request_id, None)
        place = self._places.pop(request_id, None)
        if place is not None:
            fork, chain = place
            self._is_stale |= fork is not self._root
            del fork.rows[request_id]
            if len(chain) > fork.depth:
                del fork.row_at[chain[fork.depth]]
            self._tidy(fork)

    def groups(self, num_scheduled: Mapping[str, int], num_tokens: int, num_running: int) -> list[Group]:
        """Of a step that was just planned: `num_tokens` in all, `num_running` rows that could have had some. Only rows
        of one token are in groups, each in one at most, and no shared block is written in this step."""
        if self._is_stale:
            self._found = self._worthwhile(self._find())
            self._is_stale = False
        found = self._found
        if found and not num_tokens == num_running == len(num_scheduled):
            here = [([row for row in rows if num_scheduled.get(row) == 1], blocks) for rows, blocks in found]
            found = self._worthwhile([(rows, blocks) for rows, blocks in here if len(rows) >= self._limits.min_rows])
        if self._joining:
            for request_id, chain in self._joining.items():
                self._insert(request_id, chain)
            self._joining.clear()
        return found

    def _worthwhile(self, groups: list[Group]) -> list[Group]:
        groups = sorted(groups, key=_saved, reverse=True)[:MAX_PREFIX_GROUPS]
        return groups if sum(map(_saved, groups)) * self._cache.block_size >= self._limits.min_saved else []

    # the tree

    def _insert(self, request_id: str, chain: list[int]) -> None:
        """Walks down as far as others have gone, and forks off where the chain leaves them."""
        fork = self._root
        while fork.depth < len(chain):
            at = chain[fork.depth]
            below, other = fork.forks.get(at), fork.row_at.get(at)
            if below is not None:
                depth = _same(chain, below.chain, fork.depth, below.depth)
                if depth < below.depth:
                    between = _Fork(chain, depth, fork)
                    between.forks[below.chain[depth]] = below
                    below.parent = fork.forks[at] = between
                fork = fork.forks[at]
            elif other is not None:
                _, others = self._places[other]
                del fork.rows[other], fork.row_at[at]
                fork.forks[at] = _Fork(chain, _same(chain, others, fork.depth, len(others)), fork)
                fork = fork.forks[at]
                self._put(fork, other, others)
            else:
                break
        self._put(fork, request_id, chain)
        self._is_stale |= fork is not self._root

    def _put(self, fork: _Fork, request_id: str, chain: list[int]) -> None:
        fork.rows[request_id] = None
        if len(chain) > fork.depth:
            fork.row_at[chain[fork.depth]] = request_id
        self._places[request_id] = fork, chain

    def _tidy(self, fork: _Fork) -> None:
        """A fork with one way on is none."""
        parent = fork.parent
        if parent is None or len(fork.rows) + len(fork.forks) > 1:
            return
        at = fork.chain[parent.depth]
        del parent.forks[at]
        for request_id in fork.rows:
            self._put(parent, request_id, self._places[request_id][1])
        for below in fork.forks.values():
            below.parent = parent
            parent.forks[at] = below

    # groups

    def _find(self) -> list[Group]:
        """The groups that save most, if what lies below a fork either is one group or goes its own ways."""
        forks = [self._root]
        for fork in forks:  # grows while it is walked: parents first
            forks += fork.forks.values()
        for fork in reversed(forks):
            self._weigh(fork)
        groups: list[Group] = []
        heads = [self._root]
        for fork in heads:
            heads += fork.apart
            if fork.joined is not None:
                rows, members = list(fork.rows), list(fork.joined)
                for below in members:
                    rows += below.rows
                    members += below.forks.values()
                groups.append((rows, fork.depth))
        return groups

    def _weigh(self, fork: _Fork) -> None:
        below = list(fork.forks.values())
        fork.num_rows = len(fork.rows) + sum(other.num_rows for other in below)
        fork.saved, fork.joined, fork.apart = sum(other.saved for other in below), None, below
        if fork.depth < self._min_blocks or fork.num_rows < self._limits.min_rows:
            return
        joined = [other for other in below if other.num_rows * fork.depth >= other.saved]
        apart = [other for other in below if other.num_rows * fork.depth < other.saved]
        together = len(fork.rows) + sum(other.num_rows for other in joined)
        saved = (together - 1) * fork.depth + sum(other.saved for other in apart)
        if together >= self._limits.min_rows and saved > fork.saved:
            fork.saved, fork.joined, fork.apart = saved, joined, apart


def _same(chain: list[int], other: list[int], start: int, end: int) -> int:
    """Up to where they are the same, at most to `end`; they are up to `start`."""
    if chain[start:end] == other[start:end]:
        return end
    end = min(end, len(chain))
    return next((i for i in range(start, end) if chain[i] != other[i]), end)


def _saved(group: Group) -> int:
    return (len(group[0]) - 1) * group[1]
