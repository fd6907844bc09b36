"""A device without tensors: it keeps the cache as a dictionary and checks what every step relies on.

A slot holds the whole prefix of the token written there (as a tuple), so a read of a wrong, stale or missing slot is
seen at once. The "model" is a function of the prefix, so the right output of a request needs no engine to know.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence

import numpy as np

from octavo.cache.block import EMPTY
from octavo.cache.groups import CacheGroup, plan_slabs
from octavo.cache.lives import BlockLives
from octavo.cache.manager import CacheManager
from octavo.cache.retention import KeepAll, KeepLatest, Retention
from octavo.cache.spec import PageLayout, PagePart
from octavo.config.engine_config import SchedulerConfig
from octavo.core.buckets import Buckets
from octavo.core.hooks import TokenCap
from octavo.core.messages import Submit
from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.core.prompt_logprobs import LOGITS, LOGPROBS, PromptRows
from octavo.core.step import NewRow, StepPlan, StepResult, TokenMasks
from octavo.engine.constraints import Constraints
from octavo.engine.engine_core import EngineCore
from octavo.scheduler.bucket_cap import BucketCap
from octavo.scheduler.caps import FairShare, LongPrefill, PromptLogprobRows, StateBorders
from octavo.scheduler.scheduler import Scheduler
from octavo.structured.constraint import StructuredOutputs
from octavo.structured.forced import ForcedTokens

VOCABULARY = 50
END = 0  # the end-of-sequence id
ROW_KINDS = (LOGPROBS, LOGITS)  # of annotations that have a size


def next_token(prefix: Sequence[int], allowed: Sequence[int] | None = None) -> int:
    digest = hashlib.blake2b(repr(tuple(prefix)).encode(), digest_size=4).digest()
    number = int.from_bytes(digest, "little")
    return number % VOCABULARY if allowed is None else allowed[number % len(allowed)]


def prompt_rows(prompt: Sequence[int], first: int, end: int, num_top: int) -> PromptRows:
    """What the "model" thinks of a prompt's tokens: a function of what comes before each, and of the token."""
    width = 1 + num_top
    token_ids, logprobs, ranks = array("i"), array("f"), array("i")
    for position in range(first, end):
        before = hash(tuple(prompt[: position + 1])) % 1009
        token_ids.extend([prompt[position + 1], *((before + i) % VOCABULARY for i in range(num_top))])
        logprobs.extend([-(before + prompt[position + 1] / 64), *(-(before + i / 64) for i in range(num_top))])
        ranks.extend([before + prompt[position + 1], *range(1, width)])
    return PromptRows(first, end - first, width, token_ids.tobytes(), logprobs.tobytes(), ranks.tobytes())


def allowed_tokens(words: np.ndarray) -> list[int]:
    """The tokens of one row of a mask."""
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist()


def expected_output(prompt: Sequence[int], max_tokens: int, max_total: int = 1 << 30) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < min(len(prompt) + max_tokens, max_total):
        tokens.append(next_token(tokens))
        if tokens[-1] == END:
            break
    return tokens[len(prompt) :]


class SimulatedStep:
    def __init__(self, device: SimulatedDevice, plan: StepPlan) -> None:
        self.plan = plan
        self.device = device
        self.finished = False
        self.result = StepResult(plan.step_id, [], failed=device.run(plan))
        self.result.prompt_rows = {
            request_id: device.score(request_id, positions, request_id in self.result.failed)
            for request_id, positions in plan.scored.items()
        }
        if not device.samples_late:
            self.result.token_ids = device.sample(plan, {})

    def finish(self, masks: TokenMasks | None = None) -> None:
        assert not self.finished
        self.finished = True
        if self.device.samples_late:
            self.device.masks.append(masks)
            allowed = {} if masks is None else dict(zip(masks.places, map(allowed_tokens, masks.bits), strict=True))
            self.result.token_ids = self.device.sample(self.plan, allowed)

    def wait(self) -> StepResult:
        assert self.finished, "waited for a step that was never allowed to sample"
        return self.result


class Row:
    def __init__(self, new: NewRow) -> None:
        self.token_ids, self.num_computed = list(new.token_ids), new.num_computed_tokens
        self.tables = [list(ids) for ids in new.block_ids]
        self.prompt_logprobs, self.num_prompt_tokens = new.params.prompt_logprobs, new.num_prompt_tokens
        self.last_chunk = range(0)  # positions


class SimulatedDevice:
    """`raises_on` and `nan_on` look at a row's tokens up to those of this step."""

    def __init__(
        self,
        retentions: Sequence[Retention],
        block_size: int,
        max_rows: int,
        raises_on: Callable[[list[int]], bool] = lambda tokens: False,
        nan_on: Callable[[list[int]], bool] = lambda tokens: False,
    ) -> None:
        self.retentions, self.block_size, self.max_rows = retentions, block_size, max_rows
        self.raises_on, self.nan_on = raises_on, nan_on
        self.slots: list[dict[int, tuple[int, ...]]] = [{} for _ in retentions]
        self.states: list[dict[int, tuple[int, ...] | None]] = [{} for _ in retentions]  # by block
        self.rows: dict[str, Row] = {}
        self.computed_tokens: list[int] = []  # by step
        self.plans: list[StepPlan] = []
        self.scored: list[tuple[str, int, int]] = []  # request, first position, end
        self.samples_late = False  # at `finish`, when masks come: then at most two steps can be in flight
        self.masks: list[TokenMasks | None] = []  # by step, where it samples late
        self.violations: list[str] = []

    def submit(self, plan: StepPlan) -> SimulatedStep:
        try:
            return SimulatedStep(self, plan)
        except AssertionError as error:  # the engine recovers from what a step raises; the test must not
            self.violations.append(str(error))
            raise

    def reset(self) -> None:
        self.rows.clear()

    def shutdown(self) -> None:
        self.rows.clear()

    def run(self, plan: StepPlan) -> dict[str, str]:
        """The forward. Returns the rows that failed."""
        for request_id in plan.removed:
            self.rows.pop(request_id, None)
        for new in plan.new_rows:
            assert new.request_id not in self.rows
            self.rows[new.request_id] = Row(new)
        for request_id, skipped in plan.skipped_tokens.items():
            self.rows[request_id].num_computed += skipped
        for request_id, block_ids in plan.new_block_ids.items():
            for table, ids in zip(self.rows[request_id].tables, block_ids, strict=True):
                table += ids
        assert len(self.rows) <= self.max_rows
        self.plans.append(plan)
        self.computed_tokens.append(plan.total_tokens)
        for group, source, target in plan.page_copies:
            self.states[group][target] = self.states[group].get(source)
        for request_id, count in plan.num_scheduled_tokens.items():  # as a layer does: everyone writes, then reads
            self._write(self.rows[request_id], count)
        failed = {}
        for request_id, count in plan.num_scheduled_tokens.items():
            row = self.rows[request_id]
            if self.raises_on(row.token_ids[: row.num_computed + count]):
                raise RuntimeError("the forward failed")
            poisoned = self._read(row, count)
            if poisoned or self.nan_on(row.token_ids[: row.num_computed + count]):
                failed[request_id] = "not finite"
            row.last_chunk = range(row.num_computed, row.num_computed + count)
            row.num_computed += count
        return failed

    def score(self, request_id: str, positions: tuple[int, int], is_bad: bool) -> PromptRows:
        first, end = positions
        row = self.rows[request_id]
        assert row.last_chunk.start <= first < end <= row.last_chunk.stop, "scored a position that was not computed"
        assert end < row.num_prompt_tokens, "scored what comes after the prompt"
        self.scored.append((request_id, first, end))
        assert row.prompt_logprobs is not None
        prompt = [0] * len(row.token_ids) if is_bad else row.token_ids
        return prompt_rows(prompt, first, end, row.prompt_logprobs)

    def sample(self, plan: StepPlan, allowed: dict[int, list[int]]) -> list[int]:
        """`allowed`: by place in the plan's sampled rows, for those that may not get any token."""
        sampled = []
        for place, request_id in enumerate(plan.sampled):
            row = self.rows[request_id]
            assert row.num_computed == len(row.token_ids), "sampled a row that is not caught up"
            sampled.append(next_token(row.token_ids, allowed.get(place)))
            row.token_ids.append(sampled[-1])
        return sampled

    def _slot(self, row: Row, group: int, position: int) -> int:
        block = row.tables[group][position // self.block_size]
        assert block != 0, f"position {position} lies in the null block"
        return block * self.block_size + position % self.block_size

    def _write(self, row: Row, count: int) -> None:
        is_bad = self.nan_on(row.token_ids[: row.num_computed + count])
        for position in range(row.num_computed, row.num_computed + count):
            assert position < len(row.token_ids), "computed a token that is not known"
            prefix = tuple(row.token_ids[: position + 1])
            for group, retention in enumerate(self.retentions):
                if isinstance(retention, KeepLatest):
                    continue
                self.slots[group][self._slot(row, group, position)] = (*prefix, -1) if is_bad else prefix

    def _advance_state(self, row: Row, group: int, count: int) -> bool:
        """Reads the row's state, which must be that after its computed tokens, and overwrites it."""
        (block,) = row.tables[group]
        assert block != 0
        before = tuple(row.token_ids[: row.num_computed])
        poisoned = False
        if before:
            content = self.states[group].get(block)
            poisoned = content == (*before, -1)
            assert poisoned or content == before, f"group {group}: read the state of something else"
        after = tuple(row.token_ids[: row.num_computed + count])
        self.states[group][block] = (*after, -1) if poisoned or self.nan_on(list(after)) else after
        return poisoned

    def _read(self, row: Row, count: int) -> bool:
        """Did the row read anything that is not finite?"""
        poisoned = False
        for group, retention in enumerate(self.retentions):
            if isinstance(retention, KeepLatest):
                poisoned |= self._advance_state(row, group, count)
                continue
            first = 0 if isinstance(retention, KeepAll) else max(0, row.num_computed - retention.window + 1)
            for position in range(first, row.num_computed + count):
                content = self.slots[group].get(self._slot(row, group, position))
                wanted = tuple(row.token_ids[: position + 1])
                if content == (*wanted, -1):
                    poisoned = True
                else:
                    assert content == wanted, f"group {group} position {position}: read what is not there"
        return poisoned


class CountedStep:
    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan

    def finish(self, masks: TokenMasks | None = None) -> None:
        pass

    def wait(self) -> StepResult:
        return StepResult(self.plan.step_id, [1] * len(self.plan.sampled))


class CountingDevice:
    """Computes nothing, and counts what steps that are padded to `buckets` would compute."""

    def __init__(self, buckets: Buckets) -> None:
        self.buckets = buckets
        self.sizes: list[tuple[int, int, int]] = []  # of each step: tokens, tokens with padding, rows

    def submit(self, plan: StepPlan) -> CountedStep:
        num_tokens, num_rows = plan.total_tokens, len(plan.num_scheduled_tokens)
        bucket = self.buckets.fit(num_tokens, num_rows)
        self.sizes.append((num_tokens, bucket[0] if bucket else num_tokens, num_rows))
        return CountedStep(plan)

    def reset(self) -> None:
        pass

    def shutdown(self) -> None:
        pass

    def padding(self) -> float:
        """The share of padding in what mixed steps computed."""
        mixed = [(num_tokens, padded) for num_tokens, padded, num_rows in self.sizes if num_tokens > num_rows]
        return 1 - sum(num_tokens for num_tokens, _ in mixed) / sum(padded for _, padded in mixed)


def layout(num_bytes: int, block_size: int) -> PageLayout:
    return PageLayout(block_size, (PagePart("kv", (num_bytes,), "uint8"),))


def make_groups(pages: Sequence[tuple[int, Retention]], block_size: int = 16) -> list[CacheGroup]:
    return [
        CacheGroup((f"layer{i}",), (layout(num_bytes, block_size),), retention, block_size)
        for i, (num_bytes, retention) in enumerate(pages)
    ]


def make_engine(
    *,
    pages: Sequence[tuple[int, Retention]] = ((64, KeepAll()),),
    num_slabs: int = 200,
    block_size: int = 16,
    budget: int = 256,
    max_rows: int = 16,
    depth: int = 1,
    policy: str = "fcfs",
    caching: bool = True,
    max_model_len: int = 1000,
    chunked: bool = True,
    reserve_full_prompt: bool = True,
    lives: BlockLives | None = None,
    structured: StructuredOutputs | None = None,
    annotation_bytes: int = 1 << 20,
    max_row_bytes: int = 1 << 26,
    forced: ForcedTokens | None = None,
    buckets: Buckets | None = None,
    **device_options: Callable[[list[int]], bool],
) -> EngineCore:
    groups = make_groups(pages, block_size)
    slabs = plan_slabs(tuple(group.block_bytes for group in groups))
    config = SchedulerConfig(budget, max_rows, max_model_len, policy, chunked, 0, reserve_full_prompt, 0.0, depth)  # type: ignore[arg-type]
    cache = CacheManager(
        groups, slabs.blocks_per_slab, num_slabs + 1, max_chunk=budget, enable_prefix_caching=caching, lives=lives,
        annotation_bytes=annotation_bytes,
    )  # fmt: skip
    caps: list[TokenCap] = [LongPrefill(0), FairShare(block_size)]
    if chunked:
        caps.append(PromptLogprobRows(max_row_bytes))
    if cache.has_states:
        caps.append(StateBorders(cache))
    if buckets is not None:
        caps.append(BucketCap(buckets, block_size))
    scheduler = Scheduler(config, cache, caps, () if structured is None else [structured])
    device = SimulatedDevice([retention for _, retention in pages], block_size, max_rows, **device_options)
    device.samples_late = structured is not None or forced is not None
    constraint = (
        structured if forced is None else Constraints([part for part in (structured, forced) if part is not None])
    )
    return EngineCore(
        scheduler,
        device,
        depth,
        cache.max_tokens(max_model_len),
        seed=0,
        constraint=constraint,
        vocab_size=VOCABULARY,
    )


def submit(
    engine: EngineCore,
    request_id: str,
    prompt: Sequence[int],
    max_tokens: int = 5,
    streams: bool = True,
    **fields: object,
) -> None:
    kind = RequestOutputKind.DELTA if streams else RequestOutputKind.FINAL_ONLY
    structured = fields.pop("structured", None)
    params = SamplingParams(
        max_tokens=max_tokens,
        output_kind=kind,
        structured_outputs=structured,  # type: ignore[arg-type]
        prompt_logprobs=fields.pop("prompt_logprobs", None),  # type: ignore[arg-type]
        skip_reading_prefix_cache=fields.pop("skip_reading_prefix_cache", None),  # type: ignore[arg-type]
    )
    engine.add(Submit(request_id, list(prompt), params, 0.0, eos_token_ids=[END], **fields))  # type: ignore[arg-type]


def run(engine: EngineCore, max_steps: int = 20_000) -> dict[str, list[int]]:
    """Runs to the end; checks the cache's books after every step. Returns output tokens by request."""
    outputs: dict[str, list[int]] = {}
    for _ in range(max_steps):
        if not engine.has_work():
            check_nothing_leaked(engine)
            return outputs
        for delta in engine.step().deltas:
            outputs.setdefault(delta.request_id, []).extend(delta.token_ids)
        check_books(engine)
    raise AssertionError(f"not finished after {max_steps} steps")


def check_books(engine: EngineCore) -> None:
    """Reference counts are the tables that hold a block; free lists hold exactly the unreferenced blocks; the counts
    of idle slabs and spare blocks are what counting gives; every index entry points to a block with that hash."""
    assert not engine.executor.violations  # type: ignore[attr-defined]
    cache = engine.scheduler.cache
    pool = cache.pool
    counted: dict[tuple[int, int], int] = {}
    for held in cache._held.values():
        for group, table in enumerate(held.tables):
            for block in table.held():
                assert block.block_id
                counted[group, block.block_id] = counted.get((group, block.block_id), 0) + 1
            assert table.live == len(table.held())
    left = [0] * len(cache.groups)
    for request_id, promise in cache._promises.of.items():
        for group, table in enumerate(cache._held[request_id].tables):
            left[group] += max(0, promise.peaks[group] - table.live)
    assert cache._promises.total == left
    idle, spare = 0, [0] * len(pool.blocks_per_slab)
    for slab in pool._slabs[1:]:
        used = [block for block in slab.blocks if block.ref_count]
        assert len(used) == slab.num_used
        for block in slab.blocks:
            assert block.ref_count == counted.pop((block.group, block.block_id), 0)
        if not used:
            idle += 1
        else:
            spare[slab.owner] += len(slab.blocks) - len(used)
    assert not counted, f"held but not in any slab: {counted}"
    assert idle == pool.num_idle_slabs and spare == pool._num_spare
    free = {(group, block.block_id) for group, blocks in enumerate(pool._free) for block in blocks}
    assert free == {(b.group, b.block_id) for slab in pool._slabs[1:] for b in slab.blocks if not b.ref_count}
    assert sum(map(len, pool._free)) == len(free)
    for blocks in pool._free:
        for rank, ranked in enumerate(blocks.ranks):
            assert all(block.rank == rank and (block.hash is None) == (rank == EMPTY) for block in ranked)
    for group, blocks in enumerate(cache.index._blocks):
        for block_hash, block in blocks.items():
            assert block.hash == block_hash and block.group == group
    indexed = {(group, block.block_id) for group, blocks in enumerate(cache.index._blocks) for block in blocks.values()}
    index = cache.index
    assert set(index._annotations) <= indexed, "an annotation has outlived its block"
    assert all(index._annotations.values())
    sized = {(*place, kind) for place, kinds in index._annotations.items() for kind in kinds if kind in ROW_KINDS}
    assert sized == set(index._sizes)
    assert sum(index._sizes.values()) == index.annotation_bytes_used <= index.annotation_bytes
    for block_hash, owner in cache.index._owners.items():
        assert owner in cache._held, f"{block_hash.hex()} is claimed by a request without blocks"


def check_nothing_leaked(engine: EngineCore) -> None:
    scheduler = engine.scheduler
    check_books(engine)
    assert not scheduler.requests and not scheduler.running and not len(scheduler.waiting)
    assert not scheduler.cache._held and not scheduler.cache._promises.of and not scheduler._planned
    assert scheduler.cache.pool.num_idle_slabs == scheduler.cache.pool.num_slabs
    assert scheduler.cache.reset()
    assert len(scheduler.cache.index) == 0 and not scheduler.cache.index._owners
