"""A block, its slab, and the intrusive list that keeps free blocks in the order they should be reused."""

from __future__ import annotations

from collections.abc import Iterator


class Block:
    """Room for one group's tokens (or one state) at a fixed place. Owned by the BlockPool.

    `ref_count` is the number of request tables that hold it. A block with references is in no list; one without is in
    its group's free list, where it stays findable through `hash` until it is taken again.
    """

    __slots__ = ("block_id", "free_since", "group", "hash", "next", "prev", "ref_count", "slab")

    def __init__(self, block_id: int, group: int, slab: Slab) -> None:
        self.block_id = block_id
        self.group = group
        self.slab = slab
        self.ref_count = 0
        self.hash: bytes | None = None
        self.free_since = 0  # the pool's clock, for comparing age across groups
        self.prev: Block | None = None
        self.next: Block | None = None

    def __repr__(self) -> str:
        return f"Block({self.group}:{self.block_id}, refs={self.ref_count}, hashed={self.hash is not None})"


class Slab:
    """One of the equal pieces that memory is cut into. `owner` is the group whose blocks it holds, -1 for none."""

    __slots__ = ("blocks", "idle_since", "num_used", "owner", "slab_id")

    def __init__(self, slab_id: int) -> None:
        self.slab_id = slab_id
        self.owner = -1
        self.blocks: list[Block] = []
        self.num_used = 0  # blocks with references
        self.idle_since = 0


class FreeList:
    """Doubly linked through the blocks themselves: O(1) at both ends and in the middle. The front is reused first."""

    def __init__(self) -> None:
        self._head: Block | None = None
        self._tail: Block | None = None
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Block]:
        block = self._head
        while block is not None:
            following = block.next
            yield block
            block = following

    @property
    def first(self) -> Block | None:
        return self._head

    def append(self, block: Block) -> None:
        block.prev, block.next = self._tail, None
        if self._tail is None:
            self._head = block
        else:
            self._tail.next = block
        self._tail = block
        self._length += 1

    def prepend(self, block: Block) -> None:
        block.prev, block.next = None, self._head
        if self._head is None:
            self._tail = block
        else:
            self._head.prev = block
        self._head = block
        self._length += 1

    def remove(self, block: Block) -> None:
        if block.prev is None:
            assert self._head is block, "block is not in this list"
            self._head = block.next
        else:
            block.prev.next = block.next
        if block.next is None:
            self._tail = block.prev
        else:
            block.next.prev = block.prev
        block.prev = block.next = None
        self._length -= 1
