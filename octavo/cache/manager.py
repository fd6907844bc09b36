"""CacheManager: the scheduler's only door to the cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from octavo.cache.block import KEPT, NEW, SUPERSEDED, Block
from octavo.cache.groups import CacheGroup
from octavo.cache.lives import BlockLives
from octavo.cache.pool import BlockPool
from octavo.cache.prefix import BlockHasher, PrefixIndex
from octavo.cache.promises import Promises
from octavo.cache.prompt_notes import PromptNotes, claim_of, serves
from octavo.cache.retention import ANSWER, BRANCH, PROMPT, KeepAll, KeepLatest
from octavo.cache.reuse import ReuseHistory
from octavo.cache.tables import PagedTable, StateTable
from octavo.core.messages import BlockLife
from octavo.core.prompt_logprobs import PromptScores
from octavo.core.request import Request
from octavo.core.step import BlockIds

KIND = "kind"  # the annotation of a checkpoint: why it was kept


@dataclass(slots=True)
class Hit:
    """What the index has of a request's beginning. `blocks[g]` holds a group's blocks, null where none is needed."""

    num_blocks: int
    blocks: list[list[Block]]

    def found(self) -> list[Block]:
        return [block for blocks in self.blocks for block in blocks if block.block_id]


@dataclass(slots=True)
class Held:
    """What one running request has: a table a group, and what others may expect of it."""

    tables: list[PagedTable | StateTable]
    num_registered: int = 0  # leading blocks that were offered to the index
    claims: list[bytes] = field(default_factory=list)
    num_claimed: int = 0  # leading blocks among which the claims are
    keep: dict[int, str] = field(default_factory=dict)  # block borders whose state is kept, and why
    resumed_at: int = 0  # the block border up to which it found its beginning
    follows: str = ""  # ANSWER or PROMPT: what ends there, if the request is the first to go on from it
    rank: int = KEPT  # of what it leaves in the cache
    scores: PromptScores | None = None  # the request's
    score_claims: list[bytes] = field(default_factory=list)


class CacheManager:
    """Hands out blocks, finds prefixes, remembers contents.

    A request's tokens, by where their blocks come from (all borders but the last are block borders):

        | hit: touched         | new: taken             | later steps: not yet taken |
        0               num_computed       num_computed + n                   prompt end

    Full blocks of known tokens enter the index when the step that completes them is planned: the device runs steps in
    order and writes a layer's cache before reading it, so whoever finds them reads them complete. If a step fails, what
    it registered is withdrawn.

    A recurrent state is overwritten by every step, so it is found only where a copy was kept. Copies, to a checkpoint
    or back, are carried out before the next step's forward, in the order in which they were decided (`take_copies`): a
    page may be given away as soon as a copy from it is planned.
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
        lives: BlockLives | None = None,
        annotation_bytes: int = 1 << 26,
    ) -> None:
        self.groups = tuple(groups)
        self.block_size = groups[0].tokens
        assert all(group.tokens == self.block_size for group in groups)
        self.enable_prefix_caching = enable_prefix_caching
        self.max_chunk = max_chunk
        self.index = PrefixIndex(len(groups), annotation_bytes)
        self._notes = PromptNotes(self.index, self.groups, self.block_size)
        self.reuse = ReuseHistory()
        self.pool = BlockPool(num_slabs, blocks_per_slab, self._evicted)
        self.pool.lives = self._lives = lives
        self._hasher = BlockHasher(self.block_size, hash_algorithm)
        self._reserve_slabs = watermark * self.pool.num_slabs
        self._states = [g for g, group in enumerate(groups) if isinstance(group.retention, KeepLatest)]
        self._whole = next((g for g, group in enumerate(groups) if isinstance(group.retention, KeepAll)), None)
        self._trimming = [  # groups that let go of blocks while a request runs
            g for g, group in enumerate(groups) if group.retention.first_live_block(1 << 40, self.block_size)
        ]
        self._held: dict[str, Held] = {}
        self._promises = Promises(len(groups))
        self._registered: dict[int, list[Block]] = {}  # by step, until the step's result is there
        self._planned_step = -1
        self._copies: list[tuple[int, int, int]] = []
        self._candidate: tuple[str, int, dict[int, str]] = ("", 0, {})  # last looked up: id, hit, borders to keep

    # questions

    @property
    def usage(self) -> float:
        return self.pool.usage

    @property
    def has_states(self) -> bool:
        return bool(self._states)

    def take_lives(self) -> list[BlockLife] | None:
        """Of blocks in the sample: the lives that have ended since the last call."""
        return None if self._lives is None else self._lives.take()

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

    def has_plenty(self, num_blocks: int) -> bool:
        """Can `num_blocks` of every group be taken, whatever slabs they open, with nothing else to look after?"""
        return not self._states and num_blocks * len(self.groups) <= self.pool.num_idle_slabs

    def is_being_computed(self, request: Request, num_blocks: int) -> bool:
        """Is another request just computing what would make this one's hit longer than `num_blocks`?

        Where states must be kept to be found, the other is asked to keep the one at the last border they share.
        """
        last = self._max_hit_blocks(request) if self._may_read(request) else 0
        scores, lacking = request.scores, last
        if scores is not None and num_blocks < last:
            self._notes.gather(request, scores)
            lacking = last if scores.is_planned else scores.frontier // self.block_size
        if not self._states:
            if scores is not None and lacking <= num_blocks < last:
                return self._scorer(request, scores, lacking) is not None
            return num_blocks < last and self._other_owner(request, num_blocks) is not None
        for block_idx in range(last - 1, num_blocks - 1, -1):
            owner = self._other_owner(request, block_idx)
            if owner is not None and (
                scores is None or block_idx < lacking or serves(self._held[owner].scores, scores)
            ):
                self._held[owner].keep.setdefault(block_idx + 1, BRANCH)
                return True
        if scores is None or lacking >= last:
            return False
        owner = self._scorer(request, scores, lacking)  # on its way: whether that is to be found, it decides itself
        return owner is not None and lacking < self._held[owner].num_registered

    def _scorer(self, request: Request, scores: PromptScores, block_idx: int) -> str | None:
        """Who else is about to leave what this request lacks of a block's log-probabilities."""
        owner = self.index.owner(claim_of(scores, request.block_hashes[block_idx])) if scores.is_shared else None
        if owner is None or owner == request.request_id or not serves(self._held[owner].scores, scores):
            return None
        return owner

    def waits_for_other(self, request: Request) -> bool:
        """Would the next chunk of this running request be work that another is doing?"""
        computed = request.num_computed_tokens
        return computed % self.block_size == 0 and self.is_being_computed(request, computed // self.block_size)

    def _other_owner(self, request: Request, block_idx: int) -> str | None:
        owner = self.index.owner(request.block_hashes[block_idx])
        return owner if owner != request.request_id else None

    def tokens_to_border(self, request: Request) -> int | None:
        """How many tokens lie before the next border whose state is to be kept; None if there is none."""
        held = self._held.get(request.request_id)
        start, keep = request.num_computed_tokens, held.keep if held else {}
        if held is None and self._candidate[0] == request.request_id:
            start, keep = self._candidate[1] * self.block_size, self._candidate[2]
        following = [border * self.block_size for border in keep if border * self.block_size > start]
        return min(following) - start if following else None

    def is_at_kept_border(self, request: Request) -> bool:
        """Is the state after the computed tokens one that is yet to be copied?"""
        border, inside = divmod(request.num_computed_tokens, self.block_size)
        held = self._held.get(request.request_id)
        return inside == 0 and held is not None and border in held.keep

    def _may_read(self, request: Request) -> bool:
        return (
            self.enable_prefix_caching and not request.skip_cache_reads and not request.params.skip_reading_prefix_cache
        )

    def _max_hit_blocks(self, request: Request) -> int:
        """A hit leaves at least one token to compute, for its logits."""
        self._hasher.extend(request)
        return (request.num_tokens - 1) // self.block_size

    def lookup(self, request: Request) -> Hit:
        """The longest beginning on which all groups agree. Takes nothing."""
        length = self._longest_hit(request) if self._may_read(request) else 0
        hashes, find = request.block_hashes, self.index.find
        blocks = []
        for group_idx, group in enumerate(self.groups):
            first = group.retention.blocks_of_hit(length, self.block_size) if length else 0
            found = [find(group_idx, hashes[i]) for i in range(first, length)]
            blocks.append([self.pool.null_blocks[group_idx]] * first + [block for block in found if block is not None])
            assert len(blocks[-1]) == length
        return Hit(length, blocks)

    def _longest_hit(self, request: Request) -> int:
        length = self._max_hit_blocks(request)
        if (scores := request.scores) is not None:
            self._notes.gather(request, scores)
            if not scores.is_planned:  # what is not computed has no log-probabilities
                length = min(length, scores.frontier // self.block_size)
        hashes, find = request.block_hashes, self.index.find
        agreed = 0  # groups in a row that left the length as it was
        while length and agreed < len(self.groups):
            for group_idx, group in enumerate(self.groups):

                def is_found(i: int, group: int = group_idx) -> bool:
                    return find(group, hashes[i]) is not None

                hit = group.retention.longest_hit(length, self.block_size, is_found)
                agreed = agreed + 1 if hit == length else 1
                length = hit
                if agreed >= len(self.groups):
                    break
        return length

    def plan_borders(self, request: Request, hit: Hit) -> None:
        """Decides where the state of this prompt, about to start from `hit`, is kept."""
        if not self._states or not self.enable_prefix_caching:
            return
        self._hasher.extend(request)
        retention = self.groups[self._states[0]].retention
        assert isinstance(retention, KeepLatest)
        end = self._max_hit_blocks(request)
        branch = self.index.branch(request.block_hashes[:end])
        self._candidate = (request.request_id, hit.num_blocks, retention.kept_borders(hit.num_blocks, end, branch))

    # changes

    def begin(self, step_id: int) -> None:
        """A step is being planned: until it settles, what it registers can be withdrawn."""
        self._registered[step_id] = []
        self._planned_step = step_id

    def could_admit(self, request: Request, hit: Hit, num_new: int, whole_prompt: bool) -> bool:
        """Would `admit` succeed? Changes nothing."""
        demand = self._demand(num_new)
        if whole_prompt:
            peaks, others = self._peak_blocks(request.num_tokens), self._promises.total
            live = [sum(1 for block in blocks if block.block_id) for blocks in hit.blocks]
            demand = [max(d, p - n) + o for d, p, n, o in zip(demand, peaks, live, others, strict=True)]
        return self.pool.fits(demand, hit.found(), self._reserve_slabs if self._held else 0)

    def _demand(self, num_new: int) -> list[int]:
        blocks = -(-num_new // self.block_size)
        return [1 if group in self._states else blocks for group in range(len(self.groups))]

    def admit(self, request: Request, hit: Hit, num_new: int, whole_prompt: bool) -> bool:
        """Gives a waiting request the blocks of its hit and of `num_new` tokens after it; False, with no side effect,
        if they (or with `whole_prompt` the rest of its prompt, beside what others were promised) do not fit."""
        if not self.could_admit(request, hit, num_new, whole_prompt):
            return False
        rank, follows = self._judge(request, hit)
        self.pool.touch(hit.found())
        taken = self.pool.take(self._demand(num_new))
        tables: list[PagedTable | StateTable] = []
        for group_idx, (group, found, new) in enumerate(zip(self.groups, hit.blocks, taken, strict=True)):
            table: PagedTable | StateTable
            if group_idx in self._states:
                table = StateTable()
                table.extend(new)
                self._restore(group_idx, table, found)
            else:
                table = PagedTable(group.retention, self.block_size, self.pool.null_blocks[group_idx])
                table.trimmed = group.retention.blocks_of_hit(hit.num_blocks, self.block_size)
                table.extend(found + new)
            tables.append(table)
        held = self._held[request.request_id] = Held(
            tables, hit.num_blocks, resumed_at=hit.num_blocks, follows=follows, rank=rank, scores=request.scores
        )
        if self._candidate[0] == request.request_id:
            held.keep = self._candidate[2]
            self.index.note(request.block_hashes[: self._max_hit_blocks(request)])
        self._promises.make(request.request_id, self._peak_blocks(request.num_tokens), tables)
        request.num_computed_tokens = hit.num_blocks * self.block_size
        self._claim(request)
        return True

    def _judge(self, request: Request, hit: Hit) -> tuple[int, str]:
        """The rank of what this request will leave in the cache, and after which kind of checkpoint it goes on, if it
        is the first to do so. Learns from what was found and what was not."""
        if not self._may_read(request) or request.num_preemptions:
            return KEPT, ""
        reuse, ends = self.reuse, [blocks[-1] for blocks in hit.blocks if blocks]
        is_return = bool(ends) and all(end.uses == 0 == end.ref_count for end in ends)
        last_used = reuse.last_used(reversed(request.block_hashes[hit.num_blocks :]))
        in_time = last_used is not None and last_used > self.pool.oldest_kept()
        if last_used is not None:
            reuse.vote(in_time)
        elif is_return and not reuse.is_thrashing:
            reuse.vote(True)
        kinds = {self.index.annotation(ends[group], KIND) for group in self._states if is_return}
        kind = kinds.pop() if len(kinds) == 1 and (last_used is None or ANSWER in kinds) else ""
        return KEPT if is_return or in_time or not reuse.is_thrashing else NEW, kind

    def _evicted(self, block: Block) -> None:
        assert block.hash is not None
        if block.rank == NEW:
            self.reuse.note_evicted(block.hash, block.free_since)
        elif block.rank == KEPT:
            self.reuse.note_evicted(block.hash, 0)  # as the least recently used of all
        self.index.remove(block)
        if self._lives is not None:
            self._lives.evicted(block)

    def _restore(self, group: int, table: StateTable, found: list[Block]) -> None:
        """The state becomes that of the checkpoint at the end of `found`, which was touched and is let go."""
        if found:
            assert table.state is not None
            self._copies.append((group, found[-1].block_id, table.state.block_id))
            self.pool.release(found[-1:])

    def reserve(self, request: Request, num_new: int) -> BlockIds | None:
        """Blocks for `num_new` more tokens of a running request: the ids appended to its tables, or None, with no
        side effect, if they do not fit."""
        held = self._held[request.request_id]
        end = request.num_computed_tokens + num_new
        demand = [table.need(end) for table in held.tables]
        if not self.pool.fits(demand):
            return None
        taken = self.pool.take(demand)
        ids = tuple([table.extend(blocks) for table, blocks in zip(held.tables, taken, strict=True)])
        self._promises.count(request.request_id, held.tables)
        if self._states and request.num_computed_tokens % self.block_size == 0:
            self._keep_state(request, held)  # the step about to be planned overwrites it
        return ids

    def enter_next_blocks(self, requests: Sequence[Request], step_id: int) -> list[BlockIds]:
        """`trim`, `reserve` and `register` for decoding rows whose planned token is the first of a new block: the id of
        that block in each group. The caller has asked `has_plenty`, and has counted the token as computed."""
        if self._trimming:
            for request in requests:
                self.trim(request)
        taken = self.pool.take([len(requests)] * len(self.groups))
        registered = self._registered[step_id]
        for request, *blocks in zip(requests, *taken, strict=True):
            held = self._held[request.request_id]
            for table, block in zip(held.tables, blocks, strict=True):
                assert isinstance(table, PagedTable)  # where there are states, there is never plenty
                table.append(block)
            self._register(request, held, registered)
        return list(zip(*([[block.block_id] for block in blocks] for blocks in taken), strict=True))

    def catch_up(self, request: Request) -> tuple[int, BlockIds]:
        """Blocks that others have computed since this prompt's last chunk: tokens gained, ids appended."""
        nothing: tuple[int, BlockIds] = (0, tuple([] for _ in self.groups))
        held = self._held[request.request_id]
        start = request.num_computed_tokens // self.block_size
        if not self._may_read(request) or request.num_computed_tokens % self.block_size:
            return nothing
        if start >= self._max_hit_blocks(request):
            return nothing
        if not self._states and self.index.find(0, request.block_hashes[start]) is None:
            return nothing
        if any(isinstance(table, PagedTable) and len(table.blocks) != start for table in held.tables):
            return nothing
        hit = self.lookup(request)
        if hit.num_blocks <= start:
            return nothing
        ids: list[list[int]] = []
        for group, (table, blocks) in enumerate(zip(held.tables, hit.blocks, strict=True)):
            gained = blocks[start:]
            self.pool.touch(block for block in gained if block.block_id)
            if isinstance(table, StateTable):
                self._restore(group, table, gained)
                ids.append([])
            else:
                ids.append(table.extend(gained))
        self._promises.count(request.request_id, held.tables)
        held.num_registered = max(held.num_registered, hit.num_blocks)
        held.resumed_at = hit.num_blocks
        gained_tokens = hit.num_blocks * self.block_size - request.num_computed_tokens
        request.num_computed_tokens += gained_tokens
        self._claim(request)
        return gained_tokens, tuple(ids)

    def _claim(self, request: Request) -> None:
        if self._may_read(request):
            held = self._held[request.request_id]
            held.num_claimed = self._max_hit_blocks(request)
            missing = request.block_hashes[held.num_registered : held.num_claimed]
            self.index.disclaim(held.claims, request.request_id)
            held.claims = self.index.claim(missing, request.request_id)
            if request.scores is not None:
                self.index.disclaim(held.score_claims, request.request_id)
                claims = self._notes.claims(request, self._max_hit_blocks(request))
                held.score_claims = self.index.claim(claims, request.request_id)

    def trim(self, request: Request) -> None:
        """Frees what the request's next token can no longer see."""
        if self._trimming:
            held = self._held[request.request_id]
            for group in self._trimming:
                table = held.tables[group]
                assert isinstance(table, PagedTable)
                self.pool.release(table.trim(request.num_computed_tokens), held.rank)
            self._promises.count(request.request_id, held.tables)

    def register(self, request: Request, step_id: int) -> None:
        """Lets others find the full blocks of known tokens that are computed once step `step_id` has run."""
        self._register(request, self._held[request.request_id], self._registered.get(step_id, []))

    def _register(self, request: Request, held: Held, registered: list[Block]) -> None:
        """Adds the blocks to `registered`."""
        computed, known = request.num_computed_tokens, len(request.token_ids)
        if computed >= known and self._promises.of:
            self._promises.keep(request.request_id)
        full = min(computed, known) // self.block_size
        if full <= held.num_registered or not self.enable_prefix_caching:
            return
        self._hasher.extend(request)
        hashes, insert = request.block_hashes, self.index.insert
        for i in range(held.num_registered, full):
            for table in held.tables:
                if isinstance(table, PagedTable):
                    block = table.blocks[i]
                    if block.block_id and block.hash is None and insert(block, hashes[i]):
                        registered.append(block)
        if held.num_registered < held.num_claimed:  # what waits for a state waits until that is kept
            done = range(held.num_registered, full)
            self.index.disclaim([hashes[i] for i in done if i + 1 not in held.keep], request.request_id)
        held.num_registered = full

    def note_scores(self, request: Request, scores: PromptScores) -> None:
        """Log-probabilities of this prompt have come: others may have them too."""
        if not self.enable_prefix_caching:
            return
        noted = scores.num_noted
        self._notes.leave(request, scores)
        held = self._held[request.request_id]
        if held.score_claims:
            settled = held.score_claims
            if scores.known < scores.end:
                hashes = request.block_hashes[noted // self.block_size : scores.num_noted // self.block_size]
                settled = [claim_of(scores, block_hash) for block_hash in hashes]
            self.index.disclaim(settled, request.request_id)

    def _note_registered(self, step_id: int, blocks: list[Block]) -> None:
        if step_id in self._registered:
            self._registered[step_id] += blocks

    # states

    def take_copies(self) -> list[tuple[int, int, int]]:
        """(group, from block, to block) to be carried out, in this order, before the next forward."""
        copies, self._copies = self._copies, []
        return copies

    def _keep_state(self, request: Request, held: Held) -> None:
        """At a block border: a copy for everybody if this border is to be kept, else, in decoding, one for the end."""
        border = request.num_computed_tokens // self.block_size
        if border == 0 or not self.enable_prefix_caching or request.num_computed_tokens > request.num_tokens:
            return
        if border in held.keep:
            self._checkpoint(request, held, border)
        elif request.num_computed_tokens >= request.num_prompt_tokens:
            self._roll(held, border)

    def _checkpoint(self, request: Request, held: Held, border: int) -> None:
        reason = held.keep.pop(border)
        self._hasher.extend(request)
        block_hash = request.block_hashes[border - 1]
        missing = [group for group in self._states if self.index.find(group, block_hash) is None]
        demand = [1 if group in missing else 0 for group in range(len(self.groups))]
        if missing and self._has_room_for_copy(held, demand):
            for group, blocks in enumerate(self.pool.take(demand)):
                for block in blocks:
                    self._copy_state(group, held, block)
                    self.index.insert(block, block_hash)
                    self._note_registered(self._planned_step, [block])
                    self.index.annotate(block, KIND, reason)
                    self._supersede(group, request.block_hashes[: held.resumed_at])
                self.pool.release(blocks, held.rank)
        elif missing:
            self.reuse.note_evicted(block_hash, self.pool.now)
        self.index.disclaim([block_hash], request.request_id)

    def _roll(self, held: Held, border: int) -> None:
        demand = [0] * len(self.groups)
        for group in self._states:
            table = held.tables[group]
            assert isinstance(table, StateTable)
            demand[group] = 1 if table.rolling is None else 0
        if not self._has_room_for_copy(held, demand):
            return
        for group, blocks in enumerate(self.pool.take(demand)):
            table = held.tables[group]
            if isinstance(table, StateTable):
                table.rolling = blocks[0] if blocks else table.rolling
                assert table.rolling is not None
                table.rolling_border = border
                self._copy_state(group, held, table.rolling)

    def _has_room_for_copy(self, held: Held, demand: list[int]) -> bool:
        """A copy that would be among the first to go displaces nothing that is kept."""
        if held.rank == NEW and any(n and self.pool.next_rank(group) == KEPT for group, n in enumerate(demand)):
            return False
        return self.pool.fits(demand)

    def _copy_state(self, group: int, held: Held, target: Block) -> None:
        table = held.tables[group]
        assert isinstance(table, StateTable) and table.state is not None
        self._copies.append((group, table.state.block_id, target.block_id))

    def _leave_states(self, request: Request, held: Held) -> None:
        """At the end, the state itself or the rolling copy becomes a checkpoint that others can find."""
        computed = request.num_computed_tokens
        self._hasher.extend(request)
        for group in self._states:
            table = held.tables[group]
            assert isinstance(table, StateTable)
            block, border = table.rolling, table.rolling_border
            if computed and computed % self.block_size == 0 and computed <= request.num_tokens:
                block, border = table.state, computed // self.block_size
            if block is not None and border and self.index.insert(block, request.block_hashes[border - 1]):
                self._note_registered(self._planned_step, [block])
                self.index.annotate(block, KIND, ANSWER)
                end = (request.num_prompt_tokens - 1) // self.block_size
                if held.follows != ANSWER:  # the next may go on after this prompt, or be the same again
                    end = min(held.resumed_at, end - 1)
                self._supersede(group, request.block_hashes[:end])

    def _supersede(self, group: int, hashes: Iterable[bytes]) -> None:
        """A chain has gone on beyond these borders: checkpoints there go first from now on, but for those where others
        branched off, which it would go back to if the others were lost."""
        for block_hash in hashes:
            block = self.index.find(group, block_hash)
            if block is not None and (block.uses > 1 or self.index.annotation(block, KIND) == BRANCH):
                self.pool.touch([block])
                self.pool.release([block])
            elif block is not None:
                self.pool.supersede(block)

    def mark(self, request: Request) -> bool:
        """Before drafts are planned: remembers the state, so that `rollback` can return to it. False if there is no
        room; then no draft may be planned."""
        held = self._held[request.request_id]
        states = [(group, held.tables[group]) for group in self._states]
        demand = [0] * len(self.groups)
        for group, table in states:
            assert isinstance(table, StateTable)
            demand[group] = 1 if table.mark is None else 0
        if not self.pool.fits(demand):
            return False
        taken = self.pool.take(demand)
        for group, table in states:
            assert isinstance(table, StateTable)
            table.mark = taken[group][0] if taken[group] else table.mark
            assert table.mark is not None
            table.mark_tokens = request.num_computed_tokens
            self._copy_state(group, held, table.mark)
        return True

    def rollback(self, request: Request, num_tokens: int) -> None:
        """Only the first `num_tokens` of what was computed since `mark` stand. Keys and values beyond them are
        overwritten in time; a state returns to its mark, and the tokens since are computed again."""
        held = self._held[request.request_id]
        request.num_computed_tokens = min(request.num_computed_tokens, num_tokens)
        for group in self._states:
            table = held.tables[group]
            assert isinstance(table, StateTable) and table.mark is not None and table.state is not None
            assert table.mark_tokens <= num_tokens
            request.num_computed_tokens = table.mark_tokens
            self._copies.append((group, table.mark.block_id, table.state.block_id))

    # ends and failures

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
            self._forget(block for table in held.tables for block in table.held())

    def _forget(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            if block.hash is not None:
                self.index.remove(block)
                self.pool.forget(block)

    def release(self, request: Request, is_sound: bool = True) -> None:
        """Gives all blocks back, the end of the chain first, so that beginnings stay findable longest. What a sound
        request leaves behind in its states can be found from now on."""
        held = self._held.pop(request.request_id, None)
        if held is None:
            return
        if self._states and is_sound and self.enable_prefix_caching:
            self._leave_states(request, held)
            self.index.note(request.block_hashes[: request.num_computed_tokens // self.block_size])
        self._promises.keep(request.request_id)
        self.index.disclaim(held.claims + held.score_claims, request.request_id)
        for table in held.tables:
            is_useless = isinstance(table, StateTable) and held.follows == PROMPT  # where clients drop the answer
            self.pool.release(table.held(), SUPERSEDED if is_useless else held.rank)

    def block_ids(self, request: Request) -> BlockIds:
        return tuple([table.ids() for table in self._held[request.request_id].tables])

    def leading_blocks(self, request: Request) -> list[int]:
        """The full blocks that this running request has computed, in the group that keeps every token, if there is
        one. They stay its own until it is released."""
        if self._whole is None:
            return []
        return (
            self._held[request.request_id].tables[self._whole].ids()[: request.num_computed_tokens // self.block_size]
        )

    def reset(self) -> bool:
        """Forgets all cached contents; False while any request holds blocks."""
        if self._held:
            return False
        self._forget(self.index.all_blocks())
        self.reuse = ReuseHistory()
        return True
