"""A block, its slab, and the intrusive list that keeps free blocks in the order they should be reused."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

# How little is lost with a free block: the lowest go first.
EMPTY = 0  # nobody can find it
SUPERSEDED = 1  # a later block of the same chain serves those who could
NEW = 2  # nobody has found it yet, and it must not displace what comes after it here
KEPT = 3


class Block:
    """Room for one group's tokens (or one state) at a fixed place. Owned by the BlockPool.

    `ref_count` is the number of request tables that hold it. A block with references is in no list; one without is in
    its group's free blocks, where it stays findable through `hash` until it is taken again.
    """

    __slots__ = ("block_id", "free_since", "group", "hash", "next", "prev", "rank", "ref_count", "slab", "uses")

    def __init__(self, block_id: int, group: int, slab: Slab) -> None:
        self.block_id = block_id
        self.group = group
        self.slab = slab
        self.ref_count = 0
        self.hash: bytes | None = None
        self.uses = 0  # how often its content was found by others
        self.free_since = 0  # the pool's clock, for comparing age across groups
        self.rank = EMPTY  # of a free block
        self.prev: Block | None = None
        self.next: Block | None = None

    def __repr__(self) -> str:
        return f"Block({self.group}:{self.block_id}, refs={self.ref_count}, hashed={self.hash is not None})"


class Slab:
    """One of the equal pieces that memory is cut into. `owner` is the group whose blocks it holds, -1 for none."""

    __slots__ = ("blocks", "num_used", "owner", "slab_id", "worth")

    def __init__(self, slab_id: int) -> None:
        self.slab_id = slab_id
        self.owner = -1
        self.blocks: list[Block] = []
        self.num_used = 0  # blocks with references
        self.worth = (EMPTY, 0)  # of an idle slab: rank and age of the block in it that should go last


class FreeList:
    """Doubly linked through the blocks themselves: O(1) at both ends and in the middle. `first` is reused first."""

    __slots__ = ("_length", "first", "last")

    def __init__(self) -> None:
        self.first: Block | None = None
        self.last: Block | None = None
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Block]:
        block = self.first
        while block is not None:
            following = block.next
            yield block
            block = following

    def append(self, block: Block) -> None:
        block.prev, block.next = self.last, None
        if self.last is None:
            self.first = block
        else:
            self.last.next = block
        self.last = block
        self._length += 1

    def prepend(self, block: Block) -> None:
        block.prev, block.next = None, self.first
        if self.first is None:
            self.last = block
        else:
            self.first.prev = block
        self.first = block
        self._length += 1

    def remove(self, block: Block) -> None:
        if block.prev is None:
            assert self.first is block, "block is not in this list"
            self.first = block.next
        else:
            block.prev.next = block.next
        if block.next is None:
            self.last = block.prev
        else:
            block.next.prev = block.prev
        block.prev = block.next = None
        self._length -= 1


class FreeBlocks:
    """One group's free blocks by rank, the order of their reuse. A rank is in order of last use, but for NEW, where the
    latest goes first."""

    def __init__(self) -> None:
        self.ranks = (FreeList(), FreeList(), FreeList(), FreeList())

    def __len__(self) -> int:
        return sum(map(len, self.ranks))

    def __iter__(self) -> Iterator[Block]:
        return chain(*self.ranks)

    @property
    def first(self) -> Block | None:
        for blocks in self.ranks:
            if blocks.first is not None:
                return blocks.first
        return None

    def remove(self, block: Block) -> None:
        self.ranks[block.rank].remove(block)

    def append(self, block: Block, rank: int) -> None:
        block.rank = rank
        self.ranks[rank].append(block)

    def prepend(self, block: Block, rank: int) -> None:
        block.rank = rank
        self.ranks[rank].prepend(block)
