"""Rows that share leading blocks."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.cache.retention import KeepAll, KeepLatest, KeepWindow
from octavo.core.step import MAX_PREFIX_GROUPS, StepPlan
from octavo.engine.engine_core import EngineCore
from octavo.scheduler.shared_prefixes import PrefixLimits, SharedPrefixes
from tests.simulation import SimulatedDevice, check_nothing_leaked, expected_output, make_engine, run, submit

BLOCK = 16


class Chains:
    """A cache that knows nothing but leading blocks."""

    block_size = BLOCK

    def leading_blocks(self, request: Any) -> list[int]:
        return request.chain


class Row:
    def __init__(self, request_id: str, chain: list[int]) -> None:
        self.request_id, self.chain = request_id, chain


def sharing(chains: dict[str, list[int]], **limits: int) -> tuple[SharedPrefixes, list[tuple[list[str], int]]]:
    prefixes: Any = SharedPrefixes(Chains(), PrefixLimits(**limits))  # type: ignore[arg-type]
    for request_id, chain in chains.items():
        prefixes.join(Row(request_id, chain))
    assert prefixes.groups({}, 0, 0) == []  # they may have been written in the step that is being planned
    return prefixes, every_row(prefixes, chains)


def every_row(prefixes: SharedPrefixes, rows: Any) -> list[tuple[list[str], int]]:
    groups = prefixes.groups(dict.fromkeys(rows, 1), len(rows), len(rows))
    return sorted((sorted(members), blocks) for members, blocks in groups)


def test_the_groups_that_save_most() -> None:
    stem = list(range(1, 101))
    many = {f"a{i}": [*stem, 1000 + i] for i in range(10)}  # 100 blocks
    deep = {f"b{i}": [*stem, *range(200, 280), 2000 + i] for i in range(5)}  # 80 more
    _, groups = sharing(many | deep, min_saved=0)
    assert groups == [(sorted(many), 100), (sorted(deep), 180)]
    pairs = {f"c{i}": [*stem, 300 + i // 4, 3000 + i] for i in range(40)}  # one more: not worth reading 100 ten times
    _, groups = sharing(many | deep | pairs, min_saved=0)
    assert groups == [(sorted(many | pairs), 100), (sorted(deep), 180)]


def test_what_is_too_little_is_no_group() -> None:
    def found(rows: int, blocks: int, **limits: int) -> bool:
        return bool(sharing({str(i): [*range(1, blocks + 1), 1000 + i] for i in range(rows)}, **limits)[1])

    assert found(4, 200) and not found(3, 200, min_saved=0)
    assert found(100, 16) and not found(100, 15, min_saved=0)
    assert found(33, 16) and not found(32, 16)  # 8,192 tokens


def test_only_so_many_groups() -> None:
    chains = {f"{i}-{k}": list(range(100 * i + 1, 100 * i + 20 + i)) for i in range(40) for k in range(4)}
    _, groups = sharing(chains, min_saved=0)
    assert sorted(blocks for _, blocks in groups) == list(range(59 - MAX_PREFIX_GROUPS, 59))


def test_only_rows_of_one_token() -> None:
    chains = {str(i): list(range(1, 200)) for i in range(6)}
    prefixes, _ = sharing(chains)
    scheduled = {"0": 1, "1": 1, "2": 5, "3": 1, "4": 1, "x": 3}  # and 5 has its last token in flight
    assert prefixes.groups(scheduled, 12, 7) == [(["0", "1", "3", "4"], 199)]
    del scheduled["4"]
    assert prefixes.groups(scheduled, 11, 7) == []


chains_of = st.lists(st.integers(0, 2), min_size=1, max_size=9)


@settings(max_examples=150, deadline=None)
@given(
    moves=st.lists(st.tuples(st.booleans(), chains_of, st.booleans(), st.integers(0, 9)), min_size=1, max_size=60),
    min_rows=st.integers(2, 4),
    min_blocks=st.integers(1, 3),
)
def test_the_tree_is_that_of_the_rows_that_are_there(moves, min_rows, min_blocks):
    """Whatever came and went, the groups are those of a tree built anew; each truly shares, and no row is in two."""
    limits = {"min_rows": min_rows, "min_tokens": min_blocks * BLOCK, "min_saved": 0}
    prefixes, rows = SharedPrefixes(Chains(), PrefixLimits(**limits)), {}  # type: ignore[arg-type]
    for number, (comes, turns, is_new, which) in enumerate(moves):
        if comes:
            # a chain's blocks are names of the ways to them: equal ways, equal blocks
            chain = [int("1" + "".join(map(str, turns[: i + 1]))) for i in range(len(turns))]
            chain += [10**12 + number] * is_new
            rows[str(number)] = chain
            prefixes.join(Row(str(number), chain))  # type: ignore[arg-type]
        elif rows:
            gone = list(rows)[which % len(rows)]
            prefixes.leave(gone)
            del rows[gone]
        prefixes.groups({}, 0, 0)
        groups = every_row(prefixes, rows)
        members = [row for members, _ in groups for row in members]
        assert len(members) == len(set(members)) and set(members) <= set(rows)
        for group, blocks in groups:
            assert len(group) >= min_rows and blocks >= min_blocks
            assert all(rows[row][:blocks] == rows[group[0]][:blocks] and len(rows[row]) >= blocks for row in group)
        anew, others = sharing(rows, **limits)
        assert sum((len(g) - 1) * b for g, b in groups) == sum((len(g) - 1) * b for g, b in others)
        assert count_forks(prefixes) == count_forks(anew)
    for row in list(rows):
        prefixes.leave(row)
    assert count_forks(prefixes) == 1 and not prefixes._places and not prefixes._root.row_at


def count_forks(prefixes: SharedPrefixes) -> int:
    forks = [prefixes._root]
    for fork in forks:
        forks += fork.forks.values()
    return len(forks)


# ---- in the loop -----------------------------------------------------------------------------------------------------

PAGES = {
    "one group": ((64, KeepAll()),),
    "window before full": ((320, KeepWindow(40)), (64, KeepAll())),
    "a state beside keys": ((640, KeepLatest(3)), (64, KeepAll())),
    "nothing that keeps every token": ((320, KeepWindow(40)),),
}


class CheckingDevice(SimulatedDevice):
    """Every group of a plan truly shares its blocks, before and after; nothing is written to them in its step."""

    num_groups = num_grouped_rows = 0
    whole: int | None = 0

    def run(self, plan: StepPlan) -> dict[str, str]:
        starts = {new.request_id: new.num_computed_tokens for new in plan.new_rows}
        failed = super().run(plan)
        written = set()
        for request_id, count in plan.num_scheduled_tokens.items():
            row = self.rows[request_id]
            starts[request_id] = row.num_computed - count
            if self.whole is not None:
                table = row.tables[self.whole]
                written |= {table[p // self.block_size] for p in range(row.num_computed - count, row.num_computed)}
        members = [request_id for rows, _ in plan.shared_prefix for request_id in rows]
        assert len(members) == len(set(members))
        assert len(plan.shared_prefix) <= MAX_PREFIX_GROUPS
        for rows, num_blocks in plan.shared_prefix:
            assert self.whole is not None
            blocks = self.rows[rows[0]].tables[self.whole][:num_blocks]
            assert len(blocks) == num_blocks and not written & set(blocks)
            for request_id in rows:
                assert plan.num_scheduled_tokens[request_id] == 1
                assert self.rows[request_id].tables[self.whole][:num_blocks] == blocks
                assert starts[request_id] >= num_blocks * self.block_size
        self.num_groups += len(plan.shared_prefix)
        self.num_grouped_rows += len(members)
        return failed


def engine_with_groups(pages: Any, **options: Any) -> tuple[EngineCore, CheckingDevice]:
    engine = make_engine(pages=pages, **options)
    scheduler, plain = engine.scheduler, engine.executor
    scheduler._shared_prefixes = SharedPrefixes(scheduler.cache, PrefixLimits(2, BLOCK, 0))
    device = CheckingDevice([retention for _, retention in pages], BLOCK, plain.max_rows)  # type: ignore[attr-defined]
    device.whole = next((g for g, (_, retention) in enumerate(pages) if isinstance(retention, KeepAll)), None)
    engine.executor = device
    return engine, device


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 2), st.integers(1, 150), st.integers(1, 40), st.integers(-1, 1)),
            st.tuples(st.just("abort"), st.integers(0, 30)),
            st.tuples(st.just("preempt")),
            st.tuples(st.just("step"), st.integers(1, 6)),
        ),
        min_size=5,
        max_size=40,
    ),
    pages=st.sampled_from(list(PAGES.values())),
    num_slabs=st.integers(14, 60),
    budget=st.sampled_from([16, 100, 400]),
    depth=st.integers(1, 3),
    policy=st.sampled_from(["fcfs", "priority"]),
)
def test_in_any_history_every_group_shares_what_it_says(events, pages, num_slabs, budget, depth, policy):
    engine, _ = engine_with_groups(
        pages, num_slabs=num_slabs, budget=budget, max_rows=8, depth=depth, policy=policy, max_model_len=300
    )
    stems = [[(7 * i + k) % 49 + 1 for i in range(150)] for k in range(3)]
    wanted: dict[str, list[int]] = {}
    outputs: dict[str, list[int]] = {}
    aborted: set[str] = set()
    for event in [*events, ("step", 5_000)]:
        if event[0] == "add":
            _, stem, length, max_tokens, priority = event
            prompt = [*stems[stem][:length], len(wanted) % 49 + 1]
            if len(prompt) < engine.max_total_tokens:
                submit(engine, str(len(wanted)), prompt, max_tokens, priority=priority)
                wanted[str(len(wanted))] = expected_output(prompt, max_tokens, engine.max_total_tokens)
        elif event[0] == "abort":
            engine.abort([str(event[1])])
            aborted.add(str(event[1]))
        elif event[0] == "preempt" and engine.scheduler.running:
            engine.scheduler._preempt(engine.scheduler.running[len(engine.scheduler.running) // 2])
        elif event[0] == "step":
            for _ in range(event[1]):
                if engine.has_work():
                    for delta in engine.step().deltas:
                        outputs.setdefault(delta.request_id, []).extend(delta.token_ids)
    check_nothing_leaked(engine)
    for request_id, tokens in wanted.items():
        assert request_id in aborted or outputs[request_id] == tokens
    prefixes = engine.scheduler._shared_prefixes
    assert prefixes is not None and count_forks(prefixes) == 1 and not prefixes._places and not prefixes._joining


@pytest.mark.parametrize("pages", PAGES.values(), ids=PAGES)
def test_a_burst_with_one_prefix_decodes_as_one_group(pages: Any) -> None:
    engine, device = engine_with_groups(pages, num_slabs=400, budget=512)
    prefix = [i % 49 + 1 for i in range(160)]
    for i in range(12):
        submit(engine, str(i), [*prefix, i + 1], 8)
    outputs = run(engine)
    assert all(outputs[str(i)] == expected_output([*prefix, i + 1], 8) for i in range(12))
    prefixes = engine.scheduler._shared_prefixes
    assert prefixes is not None and not prefixes._places, "all have left"
    expected = sum(len(tokens) - 1 for tokens in outputs.values())
    if device.whole is None:
        assert device.num_groups == 0
    else:  # every decoding row but the very last ones
        assert expected - 3 <= device.num_grouped_rows <= expected


def test_rows_that_share_nothing_cost_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, device = engine_with_groups(PAGES["one group"], budget=512)
    monkeypatch.setattr(SharedPrefixes, "_find", None)  # would raise
    rng = random.Random(0)
    for i in range(12):
        submit(engine, str(i), [rng.randrange(1, 50) for _ in range(100)], 20)
    run(engine)
    assert device.num_groups == 0
