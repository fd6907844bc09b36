"""Fair shares."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from octavo.core.hooks import Round
from octavo.core.params import SamplingParams
from octavo.core.prompt_logprobs import PromptScores
from octavo.core.request import Request
from octavo.scheduler.caps import UNLIMITED, FairShare, LongPrefill, PromptLogprobRows, water_level


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
    cap, plan = FairShare(16), Plan(1024)
    requests = [prompt(5000), prompt(20), prompt(4000)]
    cap.begin(plan, Round(requests[:1], requests[1:], num_decoding=4, is_fair=True))
    shares = [min(request.num_tokens, cap(request, plan)) for request in requests]
    assert shares[1] == 20
    assert shares[0] == shares[2] and shares[0] % 16 == 0
    assert 1024 - 4 - 32 < sum(shares) <= 1024 - 4


def test_only_so_many_long_prompts_share_a_step():
    cap, plan = FairShare(16), Plan(1024)
    requests = [prompt(5000 + i) for i in range(20)] + [prompt(10)]
    cap.begin(plan, Round([], requests, num_decoding=0, is_fair=True))
    shares = [cap(request, plan) for request in requests]
    assert sum(share > 0 for share in shares) == 9 and shares[0] > 0 and shares[-1] >= 10


def test_a_more_urgent_priority_is_served_first():
    cap, plan = FairShare(16), Plan(128)
    urgent, other = prompt(120, priority=-1), prompt(500, priority=0)
    cap.begin(plan, Round([other], [urgent], num_decoding=0, is_fair=True))
    assert cap(urgent, plan) >= 120 and cap(other, plan) <= 8


def test_the_second_round_has_no_level():
    cap, plan = FairShare(16), Plan(64)
    request = prompt(5000)
    cap.begin(plan, Round([request, prompt(4000)], [], num_decoding=0, is_fair=True))
    assert cap(request, plan) == 32
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
