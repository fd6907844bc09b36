"""Fair shares."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from octavo.core.hooks import Round
from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.scheduler.caps import UNLIMITED, FairShare, LongPrefill, water_level


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
