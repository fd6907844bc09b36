"""Steps that land on a size that was captured."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.cli.bench.workloads import make_workload
from octavo.core.buckets import Buckets
from octavo.core.hooks import Round
from octavo.core.messages import Submit
from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.scheduler import bucket_cap
from octavo.scheduler.bucket_cap import EAGER_UNIT, BucketCap
from octavo.scheduler.caps import UNLIMITED
from tests.simulation import CountingDevice, check_nothing_leaked, expected_output, make_engine, submit

BLOCK = 16


@dataclass
class Plan:
    token_budget: int
    budget_left: int
    num_scheduled: dict[str, int] = field(default_factory=dict)


def prompt(name: str, length: int) -> Request:
    return Request(name, [1] * length, SamplingParams(), 0.0)


def granted(lengths: list[int], num_decoding: int = 0, budget: int = 8192, max_tokens: int = 8192) -> list[int]:
    """What prompts of these lengths get in both rounds of a step, if nobody else limits them."""
    plan, cap = Plan(budget, budget), BucketCap(Buckets(1024, max_tokens), BLOCK)
    requests = [prompt(str(i), length) for i, length in enumerate(lengths)]
    for is_fair in (True, False):
        cap.begin(plan, Round(requests[:1], requests[1:], num_decoding, is_fair))
        if is_fair:
            plan.budget_left -= num_decoding
            plan.num_scheduled = {f"decoding {i}": 1 for i in range(num_decoding)}
        for request in requests:
            num_new = min(request.num_uncomputed, plan.budget_left, cap(request, plan))
            if num_new:
                plan.num_scheduled[request.request_id] = plan.num_scheduled.get(request.request_id, 0) + num_new
                plan.budget_left -= num_new
                request.num_computed_tokens += num_new
    return [request.num_computed_tokens for request in requests]


@given(num_tokens=st.integers(1, 8192), max_tokens=st.sampled_from([100, 1000, 2048, 8192, 10_000]))
def test_the_sizes_around_are_those_of_padding(num_tokens: int, max_tokens: int) -> None:
    buckets = Buckets(1024, max_tokens)
    if num_tokens <= buckets.mixed_tokens[-1]:
        below, above = buckets.around(num_tokens)
        assert below <= num_tokens <= above and buckets.fit(num_tokens, 0) == (above, 16)
        assert below == num_tokens or not [size for size in buckets.mixed_tokens if below < size < above]


def test_the_last_prompt_is_cut_where_that_saves_more_than_it_puts_off() -> None:
    assert granted([1000, 1100]) == [1000, 1048]  # 2,048 instead of 2,304
    assert granted([1000, 1140]) == [1000, 1140]  # 92 put off would save 164
    assert granted([1000, 1048]) == [1000, 1048]  # it fits
    assert granted([2090, 10]) == [2048, 0]
    assert granted([500, 25]) == [500, 12]
    assert granted([480, 25]) == [480, 25]  # a small step
    assert granted([9000]) == [8192]  # a full one
    assert granted([40], num_decoding=1000) == [24]
    assert granted([10], num_decoding=1018) == [10]  # 6 of it would be left


def test_what_is_not_padded_lands_on_whole_tiles() -> None:
    assert granted([5000, 5000], budget=20_000) == [5000, 4984]
    assert sum(granted([5000, 5000], budget=20_000)) % EAGER_UNIT == 0
    assert granted([5000, 5100], budget=20_000) == [5000, 5100]


@given(
    lengths=st.lists(st.integers(2, 5000), min_size=1, max_size=12),
    num_decoding=st.integers(0, 1024),
    budget=st.sampled_from([1100, 2048, 8192, 12_000]),
)
def test_steps_are_trimmed_to_sizes_and_somebody_always_goes_on(
    lengths: list[int], num_decoding: int, budget: int
) -> None:
    got = granted(lengths, num_decoding, budget, budget)
    total, wanted = sum(got) + num_decoding, min(budget, sum(lengths) + num_decoding)
    if total < wanted:
        largest = Buckets(1024, budget).mixed_tokens[-1]
        assert total % EAGER_UNIT == 0 if wanted > largest else Buckets(1024, budget).around(total) == (total, total)
        assert sum(got) >= BLOCK and wanted - total < 0.13 * wanted
    first_short = next((i for i, (n, m) in enumerate(zip(got, lengths, strict=True)) if n < m), len(got))
    assert not any(got[first_short + 1 :]), "who comes first is served first"


def test_whoever_is_asked_in_vain_takes_nothing() -> None:
    """A prompt that waits for another's block leaves its tokens to those after it."""
    plan, cap = Plan(8192, 8192), BucketCap(Buckets(1024, 8192), BLOCK)
    requests = [prompt("a", 1000), prompt("b", 1000), prompt("c", 100)]
    cap.begin(plan, Round(requests, [], 0, True))
    assert [cap(request, plan) for request in requests] == [2048] * 3
    plan.num_scheduled["c"] = 100
    assert cap(requests[0], plan) == 1948
    cap.begin(plan, Round([prompt("d", 300)], [], 0, True))
    assert cap(requests[0], plan) == UNLIMITED


@settings(max_examples=60, deadline=None)
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 8), st.integers(1, 150), st.integers(1, 12)), min_size=1, max_size=25),
    budget=st.sampled_from([32, 100, 300]),
    depth=st.integers(1, 2),
    policy=st.sampled_from(["fcfs", "priority"]),
    num_slabs=st.integers(30, 120),
)
def test_nobody_starves_and_no_token_changes(arrivals, budget, depth, policy, num_slabs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket_cap, "MIN_TOKENS", 0)
        engine = make_engine(
            budget=budget, depth=depth, policy=policy, num_slabs=num_slabs, max_rows=8, max_model_len=300,
            buckets=Buckets(8, budget),
        )  # fmt: skip
        outputs: dict[str, list[int]] = {}
        wanted = {}
        for number, (num_steps, length, max_tokens) in enumerate(arrivals):
            tokens = [(number * 31 + i) % 49 + 1 for i in range(length)]
            submit(engine, str(number), tokens, max_tokens, priority=number % 3)
            wanted[str(number)] = expected_output(tokens, max_tokens, engine.max_total_tokens)
            for _ in range(num_steps if number < len(arrivals) - 1 else 3_000):
                if not engine.has_work():
                    break
                for delta in engine.step().deltas:
                    outputs.setdefault(delta.request_id, []).extend(delta.token_ids)
        check_nothing_leaked(engine)
        assert outputs == wanted


def padding_of(has_cap: bool, arrivals_a_step: float | None) -> tuple[float, int]:
    """Of the workload "mixed", shortened: all at once, or as they come. The share of padding in mixed steps; steps."""
    buckets = Buckets(256, 8192)
    engine = make_engine(
        num_slabs=6_000, budget=8192, max_rows=256, depth=2, max_model_len=2048, buckets=buckets if has_cap else None
    )
    device = engine.executor = CountingDevice(buckets)
    workload, rng = make_workload("mixed"), random.Random(0)
    prompts = list(zip(workload.draw(0, 50_000), workload.lengths, strict=True))[:120]
    arrival = 0.0
    for number, (tokens, (_, num_output)) in enumerate(prompts):
        arrival += rng.expovariate(arrivals_a_step) if arrivals_a_step else 0.0
        while engine.has_work() and len(device.sizes) < arrival:
            engine.step()
        params = SamplingParams(max_tokens=max(1, num_output // 10), ignore_eos=True)
        engine.add(Submit(str(number), tokens, params, 0.0))
    while engine.has_work():
        engine.step()
    return device.padding(), len(device.sizes)


def test_less_of_a_mixed_step_is_padding() -> None:
    (plain, plain_steps), (trimmed, steps) = padding_of(False, 0.8), padding_of(True, 0.8)
    assert plain > 0.03 and trimmed < 0.6 * plain
    assert steps < 1.05 * plain_steps
    (plain, plain_steps), (trimmed, steps) = padding_of(False, None), padding_of(True, None)
    assert trimmed <= plain < 0.01 and steps <= plain_steps + 1  # full steps: there is little to save
