"""Every block of the cache: taken, touched, released, evicted. The only place where reference counts change.

Free memory is counted in two kinds, because only whole slabs can change groups:

    idle slabs      no block of theirs has a reference (they may still hold cached blocks); any group may take them
    spare blocks    free blocks inside slabs that are in use; only their own group can take them
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from octavo.cache.block import EMPTY, KEPT, NEW, SUPERSEDED, Block, FreeBlocks, Slab
from octavo.cache.lives import BlockLives


class BlockPool:
    """Slab 0 is never given out: block 0 of every group is the null block, which stands for "nothing here".

    `on_evict(block)` is called while `block.hash` is still set, just before a cached block loses it.
    """

    def __init__(self, num_slabs: int, blocks_per_slab: Sequence[int], on_evict: Callable[[Block], None]) -> None:
        assert num_slabs >= 1 and all(count >= 1 for count in blocks_per_slab)
        self.blocks_per_slab = tuple(blocks_per_slab)
        self.num_slabs = num_slabs - 1
        self._is_shared = len(self.blocks_per_slab) > 1  # idle slabs can go from group to group
        self._on_evict = on_evict
        self.lives: BlockLives | None = None  # hears of blocks that are taken and touched
        self._slabs = [Slab(slab_id) for slab_id in range(num_slabs)]
        self._free = [FreeBlocks() for _ in blocks_per_slab]
        self._unowned: list[Slab] = self._slabs[:0:-1]  # a stack; the lowest comes first
        # by owner, where memory is shared: idle slabs that hold cached blocks, oldest first
        self._idle_owned: list[OrderedDict[int, Slab]] = [OrderedDict() for _ in blocks_per_slab]
        self._num_spare = [0] * len(self.blocks_per_slab)
        self.num_idle_slabs = num_slabs - 1
        self._clock = 0
        self.null_blocks = tuple(Block(0, group, self._slabs[0]) for group in range(len(self.blocks_per_slab)))
        if not self._is_shared:  # one group owns everything, once and for all
            while self._unowned:
                self._cut(self._unowned.pop(), 0)

    # counting

    @property
    def usage(self) -> float:
        """Share of the memory that is in use: slabs with references, less the spare blocks in them."""
        if not self.num_slabs:
            return 0.0
        spare = sum(count / per for count, per in zip(self._num_spare, self.blocks_per_slab, strict=True))
        return 1.0 - (self.num_idle_slabs + spare) / self.num_slabs

    def fits(self, demand: Sequence[int], touched: Sequence[Block] = (), reserve_slabs: float = 0) -> bool:
        """Could `demand[g]` blocks of each group be taken after `touched` blocks have been, leaving
        `reserve_slabs` idle? Changes nothing."""
        if not touched and sum(demand) + reserve_slabs <= self.num_idle_slabs:
            return True  # a block opens at most one slab
        idle, spare = self.num_idle_slabs, list(self._num_spare)
        woken: dict[int, int] = {}
        for block in touched:
            if block.ref_count == 0:
                woken[block.slab.slab_id] = woken.get(block.slab.slab_id, 0) + 1
        for slab_id, count in woken.items():
            slab = self._slabs[slab_id]
            if slab.num_used == 0:
                idle -= 1
                spare[slab.owner] += self.blocks_per_slab[slab.owner]
            spare[slab.owner] -= count
        return self._slabs_needed(demand, spare) + reserve_slabs <= idle

    def _slabs_needed(self, demand: Sequence[int], spare: Sequence[int]) -> int:
        needed = 0
        for want, have, per_slab in zip(demand, spare, self.blocks_per_slab, strict=True):
            if want > have:
                needed += -(-(want - have) // per_slab)
        return needed

    # taking and giving back

    def take(self, demand: Sequence[int]) -> list[list[Block]]:
        """`demand[g]` blocks of each group, each with one reference and no hash. The caller has asked `fits`."""
        left = list(demand)
        taken: list[list[Block]] = [[] for _ in demand]
        for group, blocks in enumerate(taken):
            while left[group]:
                block = self._choose(group, left)
                if block.hash is not None:
                    self._evict(block)
                self._wake(block)
                block.ref_count = 1
                if self.lives is not None:
                    self.lives.taken(block)
                blocks.append(block)
                left[group] -= 1
        return taken

    def touch(self, blocks: Iterable[Block]) -> None:
        """One more reference for each: a cache hit."""
        for block in blocks:
            if block.ref_count == 0:
                self._wake(block)
            block.ref_count += 1
            block.uses += 1
            if self.lives is not None:
                self.lives.touched(block)

    def release(self, blocks: Iterable[Block], rank: int = KEPT) -> None:
        """One reference less for each. Blocks that become free are reused in this order: those that nobody could find
        first, then by rank; within one, the latest release last (NEW: first). So pass the tail of a chain before its
        prefix. What others have found already is KEPT."""
        new: list[Block] = []
        for block in blocks:
            assert block.ref_count > 0, f"{block!r} is not held"
            block.ref_count -= 1
            if block.ref_count == 0:
                self._clock += 1
                block.free_since = self._clock
                free = self._free[block.group]
                if block.hash is None:
                    free.prepend(block, EMPTY)
                elif block.uses:
                    free.append(block, KEPT)
                elif rank == NEW:
                    new.append(block)
                    continue
                else:
                    free.append(block, rank)
                self._slept(block)
        for block in reversed(new):
            self._free[block.group].prepend(block, NEW)
            self._slept(block)

    def supersede(self, block: Block) -> None:
        """If the block is free, it goes before all that is worth more."""
        if block.ref_count == 0 and block.rank > SUPERSEDED:
            free = self._free[block.group]
            free.remove(block)
            free.append(block, SUPERSEDED)
            if self._is_shared and block.slab.num_used == 0:
                self._place_idle(block.slab)

    def oldest_kept(self) -> int:
        """When that kept block became free that is next to go, by the pool's clock; the latest of all groups."""
        return max((block.free_since for free in self._free if (block := free.ranks[KEPT].first)), default=self._clock)

    @property
    def now(self) -> int:
        """The time that `free_since` is measured in."""
        return self._clock

    def next_rank(self, group: int) -> int:
        """The rank of the block that `take` would give to `group` next."""
        first, slab = self._free[group].first, self._oldest_of_others(group)
        ranks = [first.rank if first else KEPT, slab.worth[0] if slab else KEPT]
        return EMPTY if self._unowned else min(ranks)

    def forget(self, block: Block) -> None:
        """The block's content is no longer to be found (its hash has left the index)."""
        block.hash = None
        block.uses = 0
        if block.ref_count == 0:
            free = self._free[block.group]
            free.remove(block)
            free.prepend(block, EMPTY)
            if self._is_shared and block.slab.num_used == 0:
                self._return_if_empty(block.slab)

    # inside

    def _evict(self, block: Block) -> None:
        """A cached block that is about to leave the free ones loses its content."""
        self._on_evict(block)
        block.hash = None
        block.uses = 0

    def _wake(self, block: Block) -> None:
        """It is about to get its first reference."""
        group, slab = block.group, block.slab
        self._free[group].remove(block)
        if slab.num_used == 0:
            if self._is_shared:
                del self._idle_owned[group][slab.slab_id]
            self.num_idle_slabs -= 1
            self._num_spare[group] += self.blocks_per_slab[group]
        self._num_spare[group] -= 1
        slab.num_used += 1

    def _slept(self, block: Block) -> None:
        slab = block.slab
        slab.num_used -= 1
        self._num_spare[slab.owner] += 1
        if slab.num_used == 0:
            self._num_spare[slab.owner] -= self.blocks_per_slab[slab.owner]
            self.num_idle_slabs += 1
            if self._is_shared:
                self._place_idle(slab)
                self._return_if_empty(slab)

    def _place_idle(self, slab: Slab) -> None:
        """Among the idle slabs of its owner, in the place of the block in it that should go last."""
        idle = self._idle_owned[slab.owner]
        slab.worth = max((block.rank, block.free_since) for block in slab.blocks)
        idle[slab.slab_id] = slab
        idle.move_to_end(slab.slab_id, last=slab.worth[0] == KEPT)

    def _return_if_empty(self, slab: Slab) -> None:
        """An idle slab without cached blocks belongs to nobody."""
        if all(block.hash is None for block in slab.blocks):
            self._disown(slab)
            self._unowned.append(slab)

    def _disown(self, slab: Slab) -> None:
        for block in slab.blocks:
            if block.hash is not None:
                self._evict(block)
            self._free[slab.owner].remove(block)
        del self._idle_owned[slab.owner][slab.slab_id]
        slab.blocks, slab.owner = [], -1

    def _cut(self, slab: Slab, group: int) -> None:
        """Gives an unowned slab to `group`; its blocks become the next to be taken, lowest first when the list was
        empty or holds cached blocks only."""
        per_slab = self.blocks_per_slab[group]
        slab.owner = group
        slab.blocks = [Block(slab.slab_id * per_slab + i, group, slab) for i in range(per_slab)]
        for block in slab.blocks:
            self._free[group].append(block, EMPTY)
        if self._is_shared:
            slab.worth = (EMPTY, 0)
            self._idle_owned[group][slab.slab_id] = slab

    def _choose(self, group: int, left: Sequence[int]) -> Block:
        """The free block of `group` whose loss hurts least: one without content, then the least recently used,
        be it the group's own or in an idle slab of another group."""
        free = self._free[group]
        first = free.first
        if first is None or first.hash is not None:
            if self._unowned:
                self._cut(self._unowned.pop(), group)
            elif self._is_shared:
                slab = self._oldest_of_others(group)
                is_older = slab is not None and (first is None or slab.worth < (first.rank, first.free_since))
                if slab is not None and is_older and self._may_open_slab(group, left):
                    self._disown(slab)
                    self._cut(slab, group)
            first = free.first
        assert first is not None, "take() without fits()"
        if self._is_shared and first.slab.num_used == 0 and not self._may_open_slab(group, left):
            first = next(block for block in free if block.slab.num_used)
        return first

    def _oldest_of_others(self, group: int) -> Slab | None:
        oldest = [next(iter(idle.values())) for owner, idle in enumerate(self._idle_owned) if idle and owner != group]
        return min(oldest, key=lambda slab: slab.worth, default=None)

    def _may_open_slab(self, group: int, left: Sequence[int]) -> bool:
        """Would using one more idle slab for `group` still leave enough for everything that is yet to be taken?"""
        return (
            left[group] > self._num_spare[group]
            or self._slabs_needed(left, self._num_spare) < self.num_idle_slabs
        )  # fmt: skip
