"""Fair shares."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.hooks import Round
from octavo.core.params import SamplingParams
from octavo.core.prompt_logprobs import PromptScores
from octavo.core.request import Request
from octavo.scheduler.caps import MAX_SHARES, UNLIMITED, FairShare, LongPrefill, PromptLogprobRows, water_level


@dataclass
class Plan:
    budget_left: int
    token_budget: int = 1024
    num_scheduled: dict[str, int] = field(default_factory=dict)


def prompt(length: int, priority: int = 0) -> Request:
    return Request(f"{length}-{priority}", [1] * length, SamplingParams(), 0.0, priority=priority)


@given(demands=st.lists(st.integers(1, 500), min_size=1, max_size=20), budget=st.integers(0, 3000))
def test_the_water_level_uses_the_budget_and_no_more(demands, budget):
    level = water_level(demands, budget)
    used = sum(min(demand, level) for demand in demands)
    assert used <= budget
    if level != UNLIMITED:
        assert sum(min(demand, level + 1) for demand in demands) > budget
    else:
        assert used == sum(demands)


def test_a_short_prompt_is_served_whole_and_long_ones_share_the_rest():
    cap, plan = FairShare(16), Plan(8192)
    requests = [prompt(50_000), prompt(200), prompt(40_000)]
    cap.begin(plan, Round(requests[:1], requests[1:], num_decoding=4, is_fair=True))
    shares = [min(request.num_tokens, cap(request, plan)) for request in requests]
    assert shares[1] == 200
    assert shares[0] == shares[2] and shares[0] % 16 == 0
    assert 8192 - 4 - 32 < sum(shares) <= 8192 - 4


@pytest.mark.parametrize(("budget", "most"), [(512, 1), (2048, 1), (8192, 2), (16_384, 5)])
def test_only_so_many_long_prompts_are_in_a_step(budget: int, most: int):
    cap, plan = FairShare(16), Plan(budget)
    requests = [prompt(50_000 + i) for i in range(20)] + [prompt(10)]
    cap.begin(plan, Round([], requests, num_decoding=0, is_fair=True))
    shares = [cap(request, plan) for request in requests]
    assert sum(share > 0 for share in shares) == most + 1 and shares[0] > 0 and shares[-1] >= 10


def served(prompts: list[Request], budget: int, newcomers: dict[int, Request] | None = None) -> list[dict[str, int]]:
    """Each step's tokens by request, until everything is computed; requests that come later, by step."""
    cap, steps, late = FairShare(16), [], dict(newcomers or {})
    waiting, prompts = list(prompts), []
    while waiting or prompts or late:
        if (new := late.pop(len(steps), None)) is not None:
            waiting.append(new)
        plan, candidates = Plan(budget, budget), list(waiting)
        for is_fair in (True, False):
            cap.begin(plan, Round(prompts, candidates, num_decoding=0, is_fair=is_fair))
            for request in (*prompts, *candidates):
                tokens = min(request.num_uncomputed, plan.budget_left, cap(request, plan))
                if tokens:
                    plan.num_scheduled[request.request_id] = plan.num_scheduled.get(request.request_id, 0) + tokens
                    plan.budget_left -= tokens
                    request.num_computed_tokens += tokens
        waiting = [request for request in candidates if not request.num_computed_tokens]
        prompts += [request for request in candidates if request.num_computed_tokens]
        prompts = [request for request in prompts if request.num_uncomputed]
        steps.append(plan.num_scheduled)
    return steps


def ends(steps: list[dict[str, int]]) -> dict[str, int]:
    return {name: number for number, step in enumerate(steps) for name in step}


def together(lengths: list[int], budget: int) -> list[int]:
    """The last step of each, if all advance in each step."""
    left, found, step = list(lengths), [0] * len(lengths), 0
    while any(left):
        level = min(water_level([one for one in left if one], budget), max(left))
        for i, one in enumerate(left):
            found[i] = step if one else found[i]
            left[i] -= min(one, level)
        step += 1
    return found


@pytest.mark.parametrize("budget", [512, 2048, 8192])
@pytest.mark.parametrize("sizes", [[16] * 8, [16, 12, 9, 16, 30, 2, 3, 4], [5] * 8, [100, 3, 3]])
def test_long_prompts_take_turns_and_end_no_later_than_together(sizes: list[int], budget: int):
    lengths = [size * budget // 8 + i for i, size in enumerate(sizes)]
    prompts = [prompt(length) for length in lengths]
    steps = served(prompts, budget)
    assert all(sum(step.values()) == budget for step in steps[:-1]), "no step has room left"
    found = ends(steps)
    for request, last in zip(prompts, together(lengths, budget), strict=True):
        assert found[request.request_id] <= last + 1
    mean = sum(found.values()) / len(found)
    assert mean <= sum(together(lengths, budget)) / len(lengths)


def test_eight_prompts_advance_in_pairs_in_turn():
    prompts = [prompt(16_000 + 16 * i) for i in range(8)]
    names = [request.request_id for request in prompts]
    steps = served(prompts, 8192)
    for number, step in enumerate(steps[:12]):
        first = 2 * number % 8
        assert list(step) == names[first : first + 2]
        assert set(step.values()) == {4096}


def test_eight_long_prompts_are_in_progress_at_most():
    prompts = [prompt(9000 + i) for i in range(20)]
    steps = served(prompts, 2048)
    last = ends(steps)
    begun: set[str] = set()
    for number, step in enumerate(steps):
        begun |= set(step)
        assert sum(last[name] > number for name in begun) <= MAX_SHARES


@pytest.mark.parametrize("budget", [2048, 8192])
def test_a_newcomer_is_in_the_next_step(budget: int):
    newcomer = prompt(budget // 2)
    steps = served([prompt(4 * budget + i) for i in range(5)], budget, {4: newcomer})
    assert newcomer.request_id in steps[4]


def test_who_is_far_ahead_of_all_newcomers_does_not_starve():
    """There is always somebody who has come less far."""
    old = prompt(40_000)
    steps = served([old], 2048, {step: prompt(1500 + step) for step in range(2, 400)})
    turns = [number for number, step in enumerate(steps) if old.request_id in step]
    assert max(later - earlier for earlier, later in pairwise(turns)) <= MAX_SHARES + 2


def test_a_more_urgent_priority_is_served_first():
    cap, plan = FairShare(16), Plan(128)
    urgent, other = prompt(120, priority=-1), prompt(500, priority=0)
    cap.begin(plan, Round([other], [urgent], num_decoding=0, is_fair=True))
    assert cap(urgent, plan) >= 120 and cap(other, plan) <= 8


def test_the_second_round_has_no_level():
    cap, plan = FairShare(16), Plan(6400)
    request = prompt(50_000)
    cap.begin(plan, Round([request, prompt(40_000)], [], num_decoding=0, is_fair=True))
    assert cap(request, plan) == 3200
    cap.begin(plan, Round([request], [], num_decoding=0, is_fair=False))
    assert cap(request, plan) == UNLIMITED


def test_the_long_prefill_threshold_counts_while_others_compete():
    cap, request = LongPrefill(100), prompt(5000)
    cap.begin(Plan(1024), Round([request], [], num_decoding=1, is_fair=True))
    assert cap(request, Plan(1024)) == 100
    cap.begin(Plan(1024), Round([request], [], num_decoding=0, is_fair=True))
    assert cap(request, Plan(1024)) == UNLIMITED
    assert LongPrefill(0)(request, Plan(1024)) == UNLIMITED


def test_steps_are_as_small_as_the_rows_of_prompts_are_wide():
    cap, plan = PromptLogprobRows(max_bytes=12 * 51 * 40), Plan(1024)
    wide, other, narrow, none = (prompt(100 + i) for i in range(4))
    for request, num_top in ((wide, 50), (other, 50), (narrow, 0)):
        request.scores = PromptScores.of(SamplingParams(prompt_logprobs=num_top), 100, 1000)
    cap.begin(plan, Round([wide, none], [other, narrow], 0, True))
    assert cap(wide, plan) == cap(other, plan) == 40 // 3 and cap(none, plan) == UNLIMITED
    assert cap(narrow, plan) == 51 * 40 // 3
    plan.num_scheduled[wide.request_id] = 13
    assert cap(wide, plan) == 0, "in the second round of a step"
    wide.scores.frontier = wide.scores.end
    assert cap(wide, plan) == UNLIMITED
    tiny = PromptLogprobRows(max_bytes=1)
    tiny.begin(plan, Round([other], [], 0, True))
    assert tiny(other, plan) == 1, "it ends"
