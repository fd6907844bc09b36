"""The token caps that every engine has."""

from __future__ import annotations

from itertools import groupby

from octavo.cache.manager import CacheManager
from octavo.core.hooks import PlanView, Round
from octavo.core.request import Request

UNLIMITED = 1 << 60
MAX_STEP_ROW_BYTES = 1 << 26  # log-probabilities of prompts, on their way from the device
MAX_SHARES = 8  # long prompts in progress
LEAST_SHARE = 3072  # tokens of a long prompt in a step: with fewer its keys are read too often for what they are used


class LongPrefill:
    """At most `threshold` prompt tokens of one request a step, while others compete. 0 is no limit."""

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold or UNLIMITED
        self._limit = UNLIMITED

    def begin(self, plan: PlanView, competition: Round) -> None:
        num_competing = len(competition.prompts) + len(competition.candidates) + competition.num_decoding
        self._limit = self._threshold if num_competing > 1 else UNLIMITED

    def __call__(self, request: Request, plan: PlanView) -> int:
        return self._limit


class FairShare:
    """Divides the budget over the prompts in progress and those that could start.

    Each decoding row's token is set aside first. Of the rest, short prompts (at most a MAX_SHARES-th of it) are served
    whole, one after the other, and may take half of it from the long ones. Of these MAX_SHARES are in progress, and the
    others wait until one has ended. Those in progress take turns: a step is for as many as get LEAST_SHARE tokens of
    what is left, but for one at least, each up to a level such that the sum is that (water filling):

        8 prompts of 16,000 tokens, 8,192 a step     A B | C D | E F | G H | A B | ...     4,096 tokens each

    First come those that have come least far, so that a new one is in the next step, and before them those that have
    waited for MAX_SHARES steps. A more urgent priority is served before a less urgent one gets a share. The second
    round of a step has no level: what nobody's share used goes to whoever comes first.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._levels: dict[int, tuple[int, int]] = {}  # by priority: the longest short prompt, tokens of a long one
        self._late: set[str] = set()  # long prompts that are not in this step
        self._waited: dict[str, int] = {}  # of those in progress, steps since they were in one
        self._is_fair = False

    def begin(self, plan: PlanView, competition: Round) -> None:
        self._is_fair = competition.is_fair
        if not competition.is_fair:
            return
        self._late.clear()
        self._levels.clear()
        waited: dict[str, int] = {}
        prompts = [*competition.prompts, *competition.candidates]
        budget = plan.budget_left - competition.num_decoding
        quantum = max(self._block_size, budget // MAX_SHARES)
        for priority, members in groupby(sorted(prompts, key=_priority), key=_priority):
            short = 0
            long: list[Request] = []
            for request in members:
                if request.num_uncomputed <= quantum:
                    short += request.num_uncomputed
                elif len(long) < MAX_SHARES:
                    long.append(request)
                else:
                    self._late.add(request.request_id)
            room = max(budget - short, budget // 2)
            demands = self._take_turns(long, room, waited)
            level = water_level(demands, room)
            if level < UNLIMITED:
                level = max(1, level - level % self._block_size or level)
            self._levels[priority] = quantum, level
            budget = max(0, budget - short - sum(min(demand, level) for demand in demands))
        self._waited = waited

    def _take_turns(self, long: list[Request], room: int, waited: dict[str, int]) -> list[int]:
        """The demands of those that are in this step; the others are late."""
        demands: list[int] = []
        for request in sorted(long, key=self._turn):
            name = request.request_id
            if demands and room < LEAST_SHARE:
                self._late.add(name)
                waited[name] = self._waited.get(name, 0) + 1
            else:
                demands.append(request.num_uncomputed)
                room -= min(demands[-1], LEAST_SHARE)
        return demands

    def _turn(self, request: Request) -> tuple[bool, int, int]:
        """Lower is first; of equal ones, who came first."""
        may_wait = self._waited.get(request.request_id, 0) < MAX_SHARES
        advance = request.num_computed_tokens - max(0, request.num_cached_tokens)
        return may_wait, advance, request.num_uncomputed

    def __call__(self, request: Request, plan: PlanView) -> int:
        demand = request.num_uncomputed
        if not self._is_fair or demand <= 1:
            return UNLIMITED
        if request.request_id in self._late:
            return 0
        quantum, level = self._levels.get(request.priority, (0, UNLIMITED))
        return UNLIMITED if demand <= quantum else level


class PromptLogprobRows:
    """Bounds what a step brings of prompts' log-probabilities: rows of a whole vocabulary are large."""

    def __init__(self, max_bytes: int = MAX_STEP_ROW_BYTES) -> None:
        self._max_bytes = max_bytes
        self._share = max_bytes

    def begin(self, plan: PlanView, competition: Round) -> None:
        prompts = (*competition.prompts, *competition.candidates)
        num_asking = sum(1 for request in prompts if request.scores is not None and not request.scores.is_planned)
        self._share = self._max_bytes // max(1, num_asking)

    def __call__(self, request: Request, plan: PlanView) -> int:
        scores = request.scores
        if scores is None or scores.is_planned:
            return UNLIMITED
        most = max(1, self._share // scores.row_bytes)
        return max(0, most - plan.num_scheduled.get(request.request_id, 0))


class StateBorders:
    """Cuts prompts where a recurrent state is to be kept, which is possible only at the end of a step; and otherwise at
    block borders, so that a preempted prompt loses nothing."""

    def __init__(self, cache: CacheManager) -> None:
        self._cache = cache

    def begin(self, plan: PlanView, competition: Round) -> None:
        pass

    def __call__(self, request: Request, plan: PlanView) -> int:
        if request.request_id in plan.num_scheduled and self._cache.is_at_kept_border(request):
            return 0  # this step ends here: the next one begins with the copy
        size = self._cache.block_size
        to_border = self._cache.tokens_to_border(request)
        limit = UNLIMITED if to_border is None else to_border
        inside = request.num_computed_tokens % size  # a waiting request starts at a border
        if plan.budget_left < min(limit, request.num_uncomputed) and plan.token_budget >= 2 * size:
            return max(0, plan.budget_left - (inside + plan.budget_left) % size)
        return limit


def water_level(demands: list[int], budget: int) -> int:
    """The largest level such that sum(min(demand, level)) <= budget; UNLIMITED if all demands fit."""
    left, remaining = budget, sorted(demands)
    for i, demand in enumerate(remaining):
        level = left // (len(remaining) - i)
        if demand > level:
            return max(0, level)
        left -= demand
    return UNLIMITED


def _priority(request: Request) -> int:
    return request.priority
