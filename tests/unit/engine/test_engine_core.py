"""The whole loop over a simulated device: outputs do not depend on how the work was cut, cached, preempted or
overlapped, nothing leaks, nobody pays for another's failure."""

from __future__ import annotations

import gc
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from octavo.cache.retention import KeepAll, KeepLatest, KeepWindow
from octavo.core.request import FinishReason
from octavo.errors import InvalidRequest, PromptTooLong
from tests.simulation import check_books, check_nothing_leaked, expected_output, make_engine, run, submit

PAGES = {
    "one group": ((64, KeepAll()),),
    "window beside full": ((320, KeepWindow(40)), (64, KeepAll())),
    "a page 64 times larger": ((64 * 64, KeepWindow(20)), (64, KeepAll())),
    "three groups": ((192, KeepWindow(17)), (64, KeepAll()), (128, KeepWindow(100))),
    "a state alone": ((4096, KeepLatest()),),
    "a state 1,000 times larger beside keys": ((64_000, KeepLatest(2, 3)), (64, KeepAll())),
    "every retention": ((640, KeepLatest(3)), (64, KeepAll()), (128, KeepWindow(40)), (320, KeepLatest())),
}


def prompts_with_shared_beginnings(rng: random.Random, count: int, longest: int = 200) -> list[list[int]]:
    stems = [[rng.randrange(1, 50) for _ in range(rng.randrange(16, longest))] for _ in range(3)]
    return [
        rng.choice(stems)[: rng.randrange(1, longest)] + [rng.randrange(1, 50) for _ in range(rng.randrange(1, 40))]
        for _ in range(count)
    ]


@pytest.mark.parametrize("pages", PAGES.values(), ids=PAGES)
@pytest.mark.parametrize("budget", [1, 7, 64, 512])
@pytest.mark.parametrize("depth", [1, 2])
def test_outputs_do_not_depend_on_chunks_groups_or_depth(pages, budget, depth):
    rng = random.Random(budget)
    prompts = prompts_with_shared_beginnings(rng, 12, longest=60 if budget == 1 else 200)
    engine = make_engine(pages=pages, budget=budget, depth=depth)
    for i, prompt in enumerate(prompts):
        submit(engine, str(i), prompt, max_tokens=20, streams=i % 2 == 0)
    outputs = run(engine)
    for i, prompt in enumerate(prompts):
        assert outputs[str(i)] == expected_output(prompt, 20)


events = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 2), st.integers(1, 150), st.integers(1, 40), st.integers(-2, 2)),
        st.tuples(st.just("abort"), st.integers(0, 30)),
        st.tuples(st.just("step"), st.integers(1, 6)),
    ),
    min_size=5,
    max_size=40,
)


@settings(max_examples=120, deadline=None)
@given(
    events=events,
    pages=st.sampled_from(list(PAGES.values())),
    num_slabs=st.integers(14, 60),
    budget=st.sampled_from([5, 32, 100, 400]),
    max_rows=st.integers(1, 8),
    depth=st.integers(1, 3),
    policy=st.sampled_from(["fcfs", "priority"]),
    caching=st.booleans(),
    reserve=st.booleans(),
)
def test_any_history_gives_the_right_tokens_and_leaks_nothing(
    events, pages, num_slabs, budget, max_rows, depth, policy, caching, reserve
):
    engine = make_engine(
        pages=pages, num_slabs=num_slabs, budget=budget, max_rows=max_rows, depth=depth, policy=policy,
        caching=caching, reserve_full_prompt=reserve, max_model_len=300,
    )  # fmt: skip
    stems = [[(7 * i + k) % 49 + 1 for i in range(150)] for k in range(3)]
    wanted: dict[str, list[int]] = {}
    outputs: dict[str, list[int]] = {}
    aborted: set[str] = set()

    def step() -> None:
        for delta in engine.step().deltas:
            outputs.setdefault(delta.request_id, []).extend(delta.token_ids)
            if delta.finish_reason == FinishReason.ABORT:
                aborted.add(delta.request_id)
        check_books(engine)

    for event in events:
        if event[0] == "add":
            _, stem, length, max_tokens, priority = event
            request_id, prompt = str(len(wanted)), [*stems[stem][:length], len(wanted) % 49 + 1]
            if len(prompt) >= engine.max_total_tokens:
                with pytest.raises(PromptTooLong):
                    submit(engine, request_id, prompt, max_tokens)
                continue
            submit(engine, request_id, prompt, max_tokens, streams=stem != 1, priority=priority)
            wanted[request_id] = expected_output(prompt, max_tokens, engine.max_total_tokens)
        elif event[0] == "abort":
            engine.abort([str(event[1])])
        else:
            for _ in range(event[1]):
                step()
    for _ in range(20_000):
        if not engine.has_work():
            break
        step()
    check_nothing_leaked(engine)
    for request_id, tokens in wanted.items():
        if request_id in aborted:
            assert tokens[: len(outputs[request_id])] == outputs[request_id]
        else:
            assert outputs[request_id] == tokens


def test_a_burst_with_one_new_prefix_computes_it_once():
    prefix = [i % 49 + 1 for i in range(512)]
    engine = make_engine(budget=2048, max_rows=64, num_slabs=400)
    prompts = [[*prefix, i % 49 + 1, i // 49 + 1] for i in range(64)]
    for i, prompt in enumerate(prompts):
        submit(engine, str(i), prompt, max_tokens=1)
    outputs = run(engine)
    assert all(outputs[str(i)] == expected_output(prompt, 1) for i, prompt in enumerate(prompts))
    assert sum(engine.executor.computed_tokens) == 512 + 64 * 2


def test_a_burst_computes_its_prefix_once_also_in_small_chunks():
    prefix = [i % 49 + 1 for i in range(512)]
    for budget in (7, 100, 300):
        engine = make_engine(budget=budget, max_rows=64, num_slabs=400)
        for i in range(20):
            submit(engine, str(i), [*prefix, i % 49 + 1], max_tokens=1)
        run(engine)
        assert sum(engine.executor.computed_tokens) == 512 + 20


def test_a_short_prompt_does_not_wait_for_a_long_one():
    engine = make_engine(budget=2048, num_slabs=1200, max_model_len=17_000)
    submit(engine, "long", [i % 49 + 1 for i in range(16_000)], max_tokens=1)
    engine.step()
    submit(engine, "short", [5] * 20, max_tokens=1)
    arrived = [delta.request_id for _ in range(2) for delta in engine.step().deltas]
    assert arrived == ["short"]


@pytest.mark.parametrize(("budget", "in_a_step"), [(512, 1), (8192, 2)])
def test_long_prompts_take_turns_and_the_budget_is_used_up(budget: int, in_a_step: int):
    engine = make_engine(budget=budget, num_slabs=5000, max_model_len=17_000)
    for i in range(2 * in_a_step):
        submit(engine, str(i), [(i + j) % 49 + 1 for j in range(min(16_000, 4 * budget))], max_tokens=1)
    for _ in range(4):
        engine.step()
    names = list(map(str, range(2 * in_a_step)))
    turns = [names[:in_a_step], names[in_a_step:]]
    for number, plan in enumerate(engine.executor.plans[:4]):
        assert list(plan.num_scheduled_tokens) == turns[number % 2]
        assert plan.total_tokens == budget


def test_priority_serves_the_urgent_first_and_preempts_for_it():
    engine = make_engine(policy="priority", max_rows=1)
    submit(engine, "low", [3] * 20, max_tokens=50, priority=5)
    engine.step()
    submit(engine, "urgent", [4] * 20, max_tokens=2, priority=-1)
    engine.step()
    assert list(engine.executor.plans[-1].num_scheduled_tokens) == ["urgent"]
    assert run(engine)["low"] == expected_output([3] * 20, 50)[1:]  # its first token came before


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("how", ["raises_on", "nan_on"])
@pytest.mark.parametrize("guilty_after", [0, 30])
def test_a_request_that_fails_in_the_forward_ends_alone(depth, how, guilty_after):
    """`guilty_after` 30: it fails in its fifth decode step, with blocks that its neighbours share."""
    shared = [i % 48 + 1 for i in range(64)]
    fatal = 64 + (5 if guilty_after else 0)

    def is_guilty(tokens: list[int]) -> bool:
        return len(tokens) > fatal and tokens[64] == 49

    engine = make_engine(depth=depth, **{how: is_guilty})
    prompts = [[*shared, i + 1] for i in range(9)] + [[*shared, 49]]
    for i, prompt in enumerate(prompts):
        submit(engine, str(i), prompt, max_tokens=12)
    finished: dict[str, int] = {}
    outputs: dict[str, list[int]] = {}
    while engine.has_work():
        for delta in engine.step().deltas:
            outputs.setdefault(delta.request_id, []).extend(delta.token_ids)
            if delta.finish_reason is not None:
                finished[delta.request_id] = delta.finish_reason
                assert (delta.error is not None) == (delta.request_id == "9")
        check_books(engine)
    check_nothing_leaked(engine)
    assert finished.pop("9") == FinishReason.ERROR
    for i, prompt in enumerate(prompts[:9]):
        assert outputs[str(i)] == expected_output(prompt, 12)
        assert finished[str(i)] != FinishReason.ERROR


@settings(max_examples=60, deadline=None)
@given(
    guilty=st.dictionaries(st.integers(0, 11), st.tuples(st.booleans(), st.integers(0, 8)), max_size=5),
    depth=st.integers(1, 2),
    num_rows=st.sampled_from([3, 16]),
    has_shared_prefix=st.booleans(),
    pages=st.sampled_from(list(PAGES.values())),
)
@example({1: (True, 0), 3: (False, 0)}, 1, 16, False, PAGES["one group"])  # not finite, in a group that raised
@example({5: (True, 4), 8: (True, 6)}, 2, 16, True, PAGES["a state alone"])  # one of a group ends before it is halved
@example({4: (False, 4), 6: (False, 5)}, 2, 3, True, PAGES["one group"])  # a step in flight says nothing of suspects
@example({2: (True, 7), 9: (False, 5)}, 2, 16, True, PAGES["three groups"])  # nobody finds what the guilty wrote
def test_whoever_fails_and_how_only_the_guilty_end(guilty, depth, num_rows, has_shared_prefix, pages):
    """`guilty`: by request, whether it raises (or is not finite), and after how many of its own tokens."""
    stem = [i % 30 + 1 for i in range(40 if has_shared_prefix else 3)]
    prompts = [[*stem, 31 + i] for i in range(12)]

    def fails(raising: bool):
        fatal = {31 + i: len(stem) + 1 + after for i, (raises, after) in guilty.items() if raises == raising}
        return lambda tokens: len(tokens) > len(stem) and len(tokens) >= fatal.get(tokens[len(stem)], 1_000)

    engine = make_engine(pages=pages, depth=depth, max_rows=num_rows, raises_on=fails(True), nan_on=fails(False))
    outputs: dict[str, list[int]] = {}
    reasons: dict[str, int] = {}
    for i, prompt in enumerate(prompts):
        submit(engine, str(i), prompt, max_tokens=10)
    for _ in range(1_000):
        if not engine.has_work():
            break
        for delta in engine.step().deltas:
            outputs.setdefault(delta.request_id, []).extend(delta.token_ids)
            if delta.finish_reason is not None:
                assert delta.request_id not in reasons
                reasons[delta.request_id] = delta.finish_reason
        check_books(engine)
    check_nothing_leaked(engine)
    for i, prompt in enumerate(prompts):
        wanted = expected_output(prompt, 10)
        if i in guilty and guilty[i][1] < len(wanted):
            assert reasons[str(i)] == FinishReason.ERROR
            assert outputs[str(i)] == wanted[: guilty[i][1]]
        else:
            assert reasons[str(i)] != FinishReason.ERROR
            assert outputs[str(i)] == wanted


def test_refusals_change_nothing():
    engine = make_engine(max_model_len=100)
    submit(engine, "a", [1, 2, 3])
    with pytest.raises(InvalidRequest, match="in use"):
        submit(engine, "a", [4])
    with pytest.raises(PromptTooLong, match="100 tokens, but at most 99"):
        submit(engine, "b", [1] * 100)
    assert run(engine) == {"a": expected_output([1, 2, 3], 5)}


def test_a_cache_that_cannot_hold_the_model_length_shortens_requests():
    engine = make_engine(num_slabs=4, max_model_len=1000)
    assert engine.max_total_tokens == 64
    submit(engine, "a", [7] * 10, max_tokens=500)
    assert run(engine)["a"] == expected_output([7] * 10, 500, 64)


def test_salts_isolate():
    engine = make_engine()
    for request_id, salt in (("a", None), ("b", "x"), ("c", "x"), ("d", "y")):
        submit(engine, request_id, [5] * 50, max_tokens=1, cache_salt=salt)
        run_deltas = []
        while engine.has_work():
            run_deltas += engine.step().deltas
        assert run_deltas[-1].num_cached_tokens == (48 if request_id == "c" else 0)


def test_a_request_leaves_no_garbage_in_cycles():
    """Deltas are hidden from the garbage collector, and its rounds are pauses: reference counts must do."""
    engine = make_engine(depth=2, num_slabs=20)
    gc.collect()
    gc.disable()
    try:
        for i in range(8):
            submit(engine, str(i), [1 + i, *range(40)], max_tokens=20, streams=i % 2 == 0)
        engine.step()
        engine.abort(["3"])
        run(engine)
        assert gc.collect() == 0
    finally:
        gc.enable()
