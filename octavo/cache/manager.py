"""CacheManager: the scheduler's only door to the cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from octavo.cache.block import Block
from octavo.cache.groups import CacheGroup
from octavo.cache.pool import BlockPool
from octavo.cache.prefix import BlockHasher, PrefixIndex
from octavo.core.request import Request
from octavo.core.step import BlockIds


@dataclass(slots=True)
class Hit:
    """What the index has of a request's beginning. `blocks[g]` holds a group's blocks, null where none is needed."""

    num_blocks: int
    blocks: list[list[Block]]


@dataclass(slots=True)
class Held:
    """One request's blocks. `tables[g][i]` is block i, null when trimmed or never needed; `live[g]` counts the rest."""

    tables: list[list[Block]]
    live: list[int]
    trimmed: list[int]  # blocks before this one are null
    num_registered: int = 0  # leading blocks that were offered to the index
    claims: list[bytes] = field(default_factory=list)


class CacheManager:
    """Hands out blocks, finds prefixes, remembers contents.

    The tokens of a request, by where their blocks come from (all borders but the last are block borders):

        | hit: touched         | new: taken             | later steps: not yet taken |
        0               num_computed       num_computed + n                   prompt end

    Full blocks of known tokens enter the index when the step that completes them is planned: the device runs steps in
    order and writes a layer's cache before reading it, so whoever finds them reads them complete. If a step fails, what
    it registered is withdrawn.
    """

    def __init__(
        self,
        groups: Sequence[CacheGroup],
        blocks_per_slab: Sequence[int],
        num_slabs: int,
        *,
        max_chunk: int,
        enable_prefix_caching: bool = True,
        hash_algorithm: str = "sha256",
        watermark: float = 0.0,
    ) -> None:
        self.groups = tuple(groups)
        self.block_size = groups[0].tokens
        assert all(group.tokens == self.block_size for group in groups)
        self.enable_prefix_caching = enable_prefix_caching
        self.max_chunk = max_chunk
        self.index = PrefixIndex(len(groups))
        self.pool = BlockPool(num_slabs, blocks_per_slab, self.index.remove)
        self._hasher = BlockHasher(self.block_size, hash_algorithm)
        self._reserve_slabs = watermark * self.pool.num_slabs
        self._trimming = [  # groups that ever let go of anything
            (i, group) for i, group in enumerate(groups) if group.retention.first_live_block(1 << 40, self.block_size)
        ]
        self._held: dict[str, Held] = {}
        self._promised: dict[str, list[int]] = {}  # admitted prompts, not yet computed: their peak blocks by group
        self._registered: dict[int, list[Block]] = {}  # by step, until the step's result is there

    # questions

    @property
    def usage(self) -> float:
        return self.pool.usage

    def max_tokens(self, limit: int) -> int:
        """The longest request, up to `limit` tokens, that an empty cache can hold."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            if self._fits_empty(middle):
                low = middle
            else:
                high = middle - 1
        return low

    def _fits_empty(self, num_tokens: int) -> bool:
        peaks = self._peak_blocks(num_tokens)
        return sum(-(-n // per) for n, per in zip(peaks, self.pool.blocks_per_slab, strict=True)) <= self.pool.num_slabs

    def _peak_blocks(self, num_tokens: int) -> list[int]:
        return [g.retention.peak_blocks(num_tokens, self.block_size, self.max_chunk) for g in self.groups]

    def is_being_computed(self, request: Request, block_idx: int) -> bool:
        """Is block `block_idx` of this request's prompt just being computed by another request?"""
        if not self._may_read(request) or block_idx >= self._max_hit_blocks(request):
            return False
        owner = self.index.owner(request.block_hashes[block_idx])
        return owner is not None and owner != request.request_id

    def waits_for_other(self, request: Request) -> bool:
        """Would the next chunk of this running request be work that another is doing?"""
        computed = request.num_computed_tokens
        return computed % self.block_size == 0 and self.is_being_computed(request, computed // self.block_size)

    def _may_read(self, request: Request) -> bool:
        return self.enable_prefix_caching and not request.skip_cache_reads

    def _max_hit_blocks(self, request: Request) -> int:
        """A hit leaves at least one token to compute, for its logits."""
        self._hasher.extend(request)
        return (request.num_tokens - 1) // self.block_size

    def lookup(self, request: Request) -> Hit:
        """The longest beginning on which all groups agree. Changes nothing."""
        if not self._may_read(request):
            return Hit(0, [[] for _ in self.groups])
        length = self._max_hit_blocks(request)
        hashes, find = request.block_hashes, self.index.find
        settled = 0  # groups in a row that left the length as it was
        while settled < len(self.groups) and length:
            for group_idx, group in enumerate(self.groups):

                def is_found(i: int, group: int = group_idx) -> bool:
                    return find(group, hashes[i]) is not None

                hit = group.retention.longest_hit(length, self.block_size, is_found)
                settled = settled + 1 if hit == length else 1
                length = hit
                if settled >= len(self.groups):
                    break
        blocks = []
        for group_idx, group in enumerate(self.groups):
            first = group.retention.blocks_of_hit(length, self.block_size) if length else 0
            null = self.pool.null_blocks[group_idx]
            found = [find(group_idx, hashes[i]) for i in range(first, length)]
            blocks.append([null] * first + [block for block in found if block is not None])
            assert len(blocks[-1]) == length
        return Hit(length, blocks)

    # changes

    def could_admit(self, request: Request, hit: Hit, num_new: int, whole_prompt: bool) -> bool:
        """Would `admit` succeed? Changes nothing."""
        demand = self._demand(hit, num_new)
        if whole_prompt:
            peaks, others = self._peak_blocks(request.num_tokens), self._still_promised()
            live = [sum(1 for block in blocks if block.block_id) for blocks in hit.blocks]
            demand = [max(d, p - n) + o for d, p, n, o in zip(demand, peaks, live, others, strict=True)]
        touched = [block for blocks in hit.blocks for block in blocks if block.block_id]
        return self.pool.fits(demand, touched, self._reserve_slabs if self._held else 0)

    def _demand(self, hit: Hit, num_new: int) -> list[int]:
        return [-(-num_new // self.block_size)] * len(self.groups)

    def admit(self, request: Request, hit: Hit, num_new: int, whole_prompt: bool) -> bool:
        """Gives a waiting request the blocks of its hit and of `num_new` tokens after it; False, with no side effect,
        if they (or with `whole_prompt` the rest of its prompt, beside what others were promised) do not fit."""
        if not self.could_admit(request, hit, num_new, whole_prompt):
            return False
        for blocks in hit.blocks:
            self.pool.touch(block for block in blocks if block.block_id)
        taken = self.pool.take(self._demand(hit, num_new))
        tables = [old + new for old, new in zip(hit.blocks, taken, strict=True)]
        live = [sum(1 for block in table if block.block_id) for table in tables]
        trimmed = [group.retention.blocks_of_hit(hit.num_blocks, self.block_size) for group in self.groups]
        self._held[request.request_id] = Held(tables, live, trimmed, num_registered=hit.num_blocks)
        self._promised[request.request_id] = self._peak_blocks(request.num_tokens)
        request.num_computed_tokens = hit.num_blocks * self.block_size
        self._claim(request)
        return True

    def _still_promised(self) -> list[int]:
        total = [0] * len(self.groups)
        for request_id, peaks in self._promised.items():
            for group, (peak, live) in enumerate(zip(peaks, self._held[request_id].live, strict=True)):
                total[group] += max(0, peak - live)
        return total

    def reserve(self, request: Request, num_new: int) -> BlockIds | None:
        """Blocks for `num_new` more tokens of a running request: the ids appended to its tables, or None, with no
        side effect, if they do not fit."""
        held = self._held[request.request_id]
        need = -(-(request.num_computed_tokens + num_new) // self.block_size)
        demand = [max(0, need - len(table)) for table in held.tables]
        if not self.pool.fits(demand):
            return None
        taken = self.pool.take(demand)
        for group, blocks in enumerate(taken):
            held.tables[group] += blocks
            held.live[group] += len(blocks)
        return tuple([[block.block_id for block in blocks] for blocks in taken])

    def has_plenty(self, num_blocks: int) -> bool:
        """Can `num_blocks` of every group be taken, whatever slabs they open?"""
        return num_blocks * len(self.groups) <= self.pool.num_idle_slabs

    def enter_next_blocks(self, requests: Sequence[Request], step_id: int) -> list[BlockIds]:
        """`trim`, `reserve` and `register` for decoding rows whose planned token is the first of a new block: the id of
        that block in each group. The caller has asked `has_plenty`, and has counted the token as computed."""
        for request in requests:
            self.trim(request)
        taken = self.pool.take([len(requests)] * len(self.groups))
        ids: list[BlockIds] = []
        for request, *blocks in zip(requests, *taken, strict=True):
            held = self._held[request.request_id]
            for group, block in enumerate(blocks):
                held.tables[group].append(block)
                held.live[group] += 1
            ids.append(tuple([[block.block_id] for block in blocks]))
            self.register(request, step_id)
        return ids

    def catch_up(self, request: Request) -> tuple[int, BlockIds]:
        """Blocks that others have computed since this prompt's last chunk: tokens gained, ids appended."""
        nothing: tuple[int, BlockIds] = (0, tuple([] for _ in self.groups))
        held = self._held[request.request_id]
        start = request.num_computed_tokens // self.block_size
        if not self._may_read(request) or request.num_computed_tokens % self.block_size:
            return nothing
        if start >= self._max_hit_blocks(request) or any(len(table) != start for table in held.tables):
            return nothing
        if self.index.find(0, request.block_hashes[start]) is None:
            return nothing
        hit = self.lookup(request)
        if hit.num_blocks <= start:
            return nothing
        ids = []
        for group, blocks in enumerate(hit.blocks):
            gained = blocks[start:]
            self.pool.touch(block for block in gained if block.block_id)
            held.tables[group] += gained
            held.live[group] += sum(1 for block in gained if block.block_id)
            ids.append([block.block_id for block in gained])
        held.num_registered = max(held.num_registered, hit.num_blocks)
        gained_tokens = hit.num_blocks * self.block_size - request.num_computed_tokens
        request.num_computed_tokens += gained_tokens
        self._claim(request)
        return gained_tokens, tuple(ids)

    def _claim(self, request: Request) -> None:
        if self._may_read(request):
            held = self._held[request.request_id]
            missing = request.block_hashes[held.num_registered : self._max_hit_blocks(request)]
            held.claims = self.index.claim(missing, request.request_id)

    def trim(self, request: Request) -> None:
        """Frees what the request's next token can no longer see."""
        if not self._trimming:
            return
        held = self._held[request.request_id]
        for group_idx, group in self._trimming:
            first = group.retention.first_live_block(request.num_computed_tokens, self.block_size)
            table, null = held.tables[group_idx], self.pool.null_blocks[group_idx]
            first = min(first, len(table))
            if first > held.trimmed[group_idx]:
                gone = [block for block in table[held.trimmed[group_idx] : first] if block.block_id]
                table[held.trimmed[group_idx] : first] = [null] * (first - held.trimmed[group_idx])
                held.trimmed[group_idx] = first
                held.live[group_idx] -= len(gone)
                self.pool.release(reversed(gone))

    def register(self, request: Request, step_id: int) -> None:
        """Lets others find the full blocks of known tokens that are computed once step `step_id` has run."""
        known = len(request.token_ids)
        computed = min(request.num_computed_tokens, known)
        if computed == known and self._promised:
            self._promised.pop(request.request_id, None)
        held = self._held[request.request_id]
        full = computed // self.block_size
        if full <= held.num_registered or not self.enable_prefix_caching:
            return
        self._hasher.extend(request)
        registered: list[Block] = []
        for i in range(held.num_registered, full):
            block_hash = request.block_hashes[i]
            for table in held.tables:
                block = table[i]
                if block.block_id and block.hash is None and self.index.insert(block, block_hash):
                    registered.append(block)
        if held.claims:
            self.index.disclaim(request.block_hashes[held.num_registered : full], request.request_id)
        held.num_registered = full
        if step_id in self._registered:
            self._registered[step_id] += registered

    def begin(self, step_id: int) -> None:
        """A step is being planned: until it settles, what it registers can be withdrawn."""
        self._registered[step_id] = []

    def settle(self, step_id: int) -> None:
        """The step has run: what it registered stays."""
        self._registered.pop(step_id, None)

    def withdraw(self, step_ids: Iterable[int]) -> None:
        """These steps did not run: nobody may find what they registered."""
        for step_id in step_ids:
            self._forget(self._registered.pop(step_id, []))

    def forget(self, request: Request) -> None:
        """Nobody may find any block of this request: its contents are in doubt."""
        held = self._held.get(request.request_id)
        if held:
            self._forget(block for table in held.tables for block in table if block.block_id)

    def _forget(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            if block.hash is not None:
                self.index.remove(block)
                self.pool.forget(block)

    def release(self, request: Request) -> None:
        """Gives all blocks back, the end of the chain first, so that beginnings stay findable longest."""
        held = self._held.pop(request.request_id, None)
        if held is None:
            return
        self._promised.pop(request.request_id, None)
        self.index.disclaim(held.claims, request.request_id)
        for table in held.tables:
            self.pool.release(block for block in reversed(table) if block.block_id)

    def block_ids(self, request: Request) -> BlockIds:
        return tuple([block.block_id for block in table] for table in self._held[request.request_id].tables)

    def reset(self) -> bool:
        """Forgets all cached contents; False while any request holds blocks."""
        if self._held:
            return False
        self._forget(self.index.all_blocks())
        return True
