"""Log-probabilities of prompts: what is computed, kept and served again, on a device without tensors."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.cache.retention import KeepAll, KeepLatest, KeepWindow
from octavo.core.prompt_logprobs import PromptRows
from octavo.engine.engine_core import EngineCore
from tests.simulation import check_books, check_nothing_leaked, expected_output, make_engine, prompt_rows, submit

PAGES = {
    "attention": ((64, KeepAll()),),
    "window": ((64, KeepWindow(20)),),
    "window and attention": ((64, KeepWindow(40)), (64, KeepAll())),
    "states": ((4096, KeepLatest(2, 3)),),
    "hybrid": ((6400, KeepLatest(2, 3)), (64, KeepAll())),
}


def serve(engine: EngineCore, max_steps: int = 20_000) -> dict[str, PromptRows]:
    """Runs to the end. What each request was told of its prompt."""
    found: dict[str, PromptRows] = {}
    for _ in range(max_steps):
        if not engine.has_work():
            return found
        for delta in engine.step().deltas:
            if delta.prompt_rows is not None:
                assert delta.request_id not in found, "told twice"
                found[delta.request_id] = delta.prompt_rows
        check_books(engine)
    raise AssertionError("not finished")


def all_rows(prompt: list[int], num_top: int) -> PromptRows:
    return prompt_rows(prompt, 0, len(prompt) - 1, num_top)


def ask(engine: EngineCore, prompt: list[int], num_top: int | None = 1, **fields: object) -> int:
    """Checks the answer to one request; returns how many tokens were computed for it, all of its output's."""
    before = sum(engine.executor.computed_tokens)
    submit(engine, "one", prompt, max_tokens=1, prompt_logprobs=num_top, **fields)
    rows = serve(engine)
    assert rows == ({} if num_top is None else {"one": all_rows(prompt, num_top)})
    return sum(engine.executor.computed_tokens) - before


def tokens(seed: int, count: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, 50) for _ in range(count)]


@pytest.mark.parametrize("pages", PAGES.values(), ids=PAGES)
@pytest.mark.parametrize("budget", [1, 24, 512])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_repeated_prompt_computes_nothing_but_what_is_after_its_last_full_block(pages, budget, depth):
    engine = make_engine(pages=pages, budget=budget, depth=depth)
    prompt = tokens(0, 100)
    assert ask(engine, prompt) == 100
    for num_top in (1, 0):
        assert ask(engine, prompt, num_top) == 4
    assert ask(engine, prompt, None) == 4
    check_nothing_leaked(engine)


@pytest.mark.parametrize("pages", PAGES.values(), ids=PAGES)
def test_who_asks_for_more_than_is_kept_computes_it_and_it_is_kept(pages):
    engine, prompt = make_engine(pages=pages), tokens(0, 100)
    assert ask(engine, prompt, None) == 100
    assert ask(engine, prompt, 1) == 100, "nobody had asked"
    assert ask(engine, prompt, 3) == 100
    assert [ask(engine, prompt, num_top) for num_top in (3, 2, 0)] == [4, 4, 4]
    assert ask(engine, prompt, 40) == 100 == ask(engine, prompt, 40), "rows so wide are not kept"
    assert ask(engine, prompt, 3) == 4


@pytest.mark.parametrize("pages", [PAGES["attention"], PAGES["window and attention"], PAGES["hybrid"]])
def test_a_longer_prompt_computes_what_is_new(pages):
    prompt = tokens(0, 100)
    engine = make_engine(pages=pages)
    assert ask(engine, prompt[:81]) == 81
    assert ask(engine, prompt) == 20
    assert ask(engine, prompt[:50]) == (18 if engine.scheduler.cache.has_states else 2)
    engine = make_engine(pages=PAGES["attention"])
    assert ask(engine, prompt[:80]) == 80
    assert ask(engine, prompt) == 36, "nothing came after the last block of the shorter one"
    assert sum(end - first for _, first, end in engine.executor.scored) == 99


@pytest.mark.parametrize("pages", PAGES.values(), ids=PAGES)
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("budget", [24, 2048])
def test_a_burst_with_one_new_prefix_computes_it_once(pages, depth, budget):
    prefix = tokens(1, 165)
    engine = make_engine(pages=pages, budget=budget, max_rows=64, num_slabs=4000, depth=depth)
    prompts = {str(i): [*prefix, i + 1, 3, 4] for i in range(8)}
    for name, prompt in prompts.items():
        submit(engine, name, prompt, max_tokens=1, prompt_logprobs=1)
    assert serve(engine) == {name: all_rows(prompt, 1) for name, prompt in prompts.items()}
    assert sum(engine.executor.computed_tokens) == 160 + 8 * 8


def test_prompts_that_part_at_a_border_compute_the_block_before_it():
    """The row of its last position is of each one's own next token."""
    prefix = tokens(1, 160)
    engine = make_engine(budget=2048, max_rows=64)
    prompts = {str(i): [*prefix, i + 1, 3, 4] for i in range(8)}
    for name, prompt in prompts.items():
        submit(engine, name, prompt, max_tokens=1, prompt_logprobs=1)
    assert serve(engine) == {name: all_rows(prompt, 1) for name, prompt in prompts.items()}
    assert sum(engine.executor.computed_tokens) == 163 + 7 * (16 + 3)


def test_nobody_waits_for_one_who_will_not_do():
    """Neither for one that asks for nothing, nor for one that asks for less."""
    prompt = tokens(2, 200)
    for first in (None, 1):
        engine = make_engine(budget=64, max_rows=4)
        submit(engine, "first", prompt, max_tokens=1, prompt_logprobs=first)
        engine.step()
        submit(engine, "second", prompt, max_tokens=1, prompt_logprobs=2)
        engine.step()
        assert "second" in engine.executor.rows
        assert serve(engine)["second"] == all_rows(prompt, 2)


def test_others_wait_for_one_who_asks_and_find_its_blocks():
    prompt = tokens(2, 200)
    engine = make_engine(budget=512, max_rows=4)
    submit(engine, "first", prompt, max_tokens=1, prompt_logprobs=2)
    submit(engine, "second", prompt, max_tokens=1)
    submit(engine, "third", prompt, max_tokens=1, prompt_logprobs=1)
    rows = serve(engine)
    assert rows == {"first": all_rows(prompt, 2), "third": all_rows(prompt, 1)}
    assert sum(engine.executor.computed_tokens) == 200 + 8 + 8


@pytest.mark.parametrize("pages", PAGES.values(), ids=PAGES)
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("depth", [1, 2])
def test_what_preemption_interrupts_is_not_scored_again(pages, caching, depth):
    engine = make_engine(pages=pages, budget=24, depth=depth, caching=caching)
    prompt = tokens(3, 150)
    submit(engine, "one", prompt, max_tokens=3, prompt_logprobs=1)
    num_lost = 0
    for _ in range(3):
        for _ in range(2):
            engine.step()
        num_lost += sum(end - first for handle in engine._in_flight for first, end in handle.plan.scored.values())
        engine.scheduler.preempt_all()
    assert serve(engine) == {"one": all_rows(prompt, 1)}
    assert sum(end - first for _, first, end in engine.executor.scored) == 149 + num_lost
    check_nothing_leaked(engine)


def test_rows_of_a_failed_step_reach_nobody():
    """A row that is not finite is tried alone; what it scored is forgotten, also by the index."""
    prompt, bad = tokens(4, 100), tokens(5, 100)
    failing = [True]

    def nan_on(row: list[int]) -> bool:
        return failing[0] and len(row) > 70 and row[:70] == bad[:70]

    engine = make_engine(budget=32, nan_on=nan_on)
    submit(engine, "good", prompt, max_tokens=1, prompt_logprobs=1)
    submit(engine, "bad", bad, max_tokens=1, prompt_logprobs=1)
    assert serve(engine) == {"good": all_rows(prompt, 1)}
    failing[0] = False
    assert ask(engine, bad) == 100 and ask(engine, bad) == 4
    assert ask(engine, prompt) <= 100


def test_a_step_that_raises_loses_only_its_own_rows():
    prompt = tokens(6, 100)
    raising = [True]

    def raises_on(row: list[int]) -> bool:
        return len(row) > 70 and raising and bool(raising.pop())

    engine = make_engine(budget=32, raises_on=raises_on)
    submit(engine, "one", prompt, max_tokens=1, prompt_logprobs=1)
    assert serve(engine) == {"one": all_rows(prompt, 1)}
    counts = Counter(p for _, first, end in engine.executor.scored for p in range(first, end))
    assert set(counts.values()) == {1}


def test_wide_rows_come_in_small_steps_and_end():
    engine = make_engine(max_row_bytes=12 * 51 * 8, budget=64)
    prompt = tokens(7, 60)
    submit(engine, "wide", prompt, max_tokens=1, prompt_logprobs=50)
    submit(engine, "narrow", prompt[::-1], max_tokens=1, prompt_logprobs=0)
    assert serve(engine) == {"wide": all_rows(prompt, 50), "narrow": all_rows(prompt[::-1], 0)}
    wide = [end - first for name, first, end in engine.executor.scored if name == "wide"]
    assert max(wide) <= 8
    assert sum(wide) == 59


def test_without_room_for_notes_everything_is_computed_and_nobody_waits():
    engine, prompt = make_engine(annotation_bytes=0), tokens(8, 100)
    assert ask(engine, prompt) == 100 == ask(engine, prompt)
    assert not engine.scheduler.cache.index._annotations
    assert ask(engine, prompt, None) == 4


def test_a_cache_that_must_not_be_read_is_written():
    engine, prompt = make_engine(), tokens(8, 100)
    for _ in range(2):
        params = {"prompt_logprobs": 1, "skip_reading_prefix_cache": True}
        submit(engine, "one", prompt, max_tokens=1, **params)
        serve(engine)
    assert sum(engine.executor.computed_tokens) == 200
    assert ask(engine, prompt) == 4


events = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"),
            st.integers(0, 2),
            st.integers(1, 150),
            st.integers(1, 20),
            st.sampled_from([None, 0, 1, 3, 40]),
        ),
        st.tuples(st.just("abort"), st.integers(0, 30)),
        st.tuples(st.just("preempt")),
        st.tuples(st.just("step"), st.integers(1, 6)),
    ),
    min_size=5,
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(
    events=events,
    pages=st.sampled_from(list(PAGES.values())),
    num_slabs=st.integers(14, 60),
    budget=st.sampled_from([5, 32, 100, 400]),
    max_rows=st.integers(1, 8),
    depth=st.integers(1, 3),
    caching=st.booleans(),
    annotation_bytes=st.sampled_from([0, 3000, 1 << 20]),
)
def test_any_history_tells_the_right_rows_and_keeps_the_books(
    events, pages, num_slabs, budget, max_rows, depth, caching, annotation_bytes
):
    engine = make_engine(
        pages=pages, num_slabs=num_slabs, budget=budget, max_rows=max_rows, depth=depth, caching=caching,
        max_model_len=300, annotation_bytes=annotation_bytes, max_row_bytes=12 * 41 * 30,
    )  # fmt: skip
    stems = [[(7 * i + k) % 49 + 1 for i in range(150)] for k in range(3)]
    wanted: dict[str, tuple[list[int], int | None, list[int]]] = {}
    rows: dict[str, PromptRows] = {}
    outputs: dict[str, list[int]] = {}
    aborted: set[str] = set()

    def step() -> None:
        for delta in engine.step().deltas:
            outputs.setdefault(delta.request_id, []).extend(delta.token_ids)
            if delta.prompt_rows is not None:
                assert delta.request_id not in rows
                rows[delta.request_id] = delta.prompt_rows
            if delta.finish_reason == 2:
                aborted.add(delta.request_id)
        check_books(engine)

    for event in events:
        if event[0] == "add":
            _, stem, length, max_tokens, num_top = event
            name, prompt = str(len(wanted)), [*stems[stem][:length], len(wanted) % 3 + 1]
            if len(prompt) >= engine.max_total_tokens:
                continue
            submit(engine, name, prompt, max_tokens, streams=stem != 1, prompt_logprobs=num_top)
            wanted[name] = prompt, num_top, expected_output(prompt, max_tokens, engine.max_total_tokens)
        elif event[0] == "abort":
            engine.abort([str(event[1])])
        elif event[0] == "preempt":
            engine.scheduler.preempt_all()
        else:
            for _ in range(event[1]):
                step()
    for _ in range(20_000):
        if not engine.has_work():
            break
        step()
    check_nothing_leaked(engine)
    for name, (prompt, num_top, output) in wanted.items():
        if name not in aborted:
            assert outputs[name] == output
            assert rows.get(name) == (None if num_top is None else all_rows(prompt, num_top))
