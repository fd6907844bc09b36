"""The token cap of engines whose steps are padded to sizes that were captured."""

from __future__ import annotations

from octavo.core.buckets import Buckets
from octavo.core.hooks import PlanView, Round
from octavo.core.request import Request
from octavo.scheduler.caps import UNLIMITED

MIN_TOKENS = 512  # of steps that are trimmed: smaller ones take as long as it takes to read the weights
WORTH = 2  # tokens of padding that one token put off has to save, since its request waits for another step
EAGER_UNIT = 256  # tokens: what lies beyond the largest bucket is not padded, but products are computed in such tiles


class BucketCap:
    """Cuts the end off a step's prompts where it would be padded far, so that it lands on the size below.

    The total is that of a step in which everybody gets what is wanted. (A waiting request may find a part of it in the
    cache, which is not known yet: then the step is smaller, and at worst padded.) Where that is more than the budget,
    the step is full and as large as the largest bucket. Prompts are cut in the order in which they are served, so who
    is cut comes first in the next step; and some block of prompt is always left.
    """

    def __init__(self, buckets: Buckets, block_size: int) -> None:
        self._buckets, self._block_size = buckets, block_size
        self._left = UNLIMITED  # prompt tokens of this round
        self._asked: tuple[str, int] | None = None  # who was asked for last, and what it had before
        self._num_decoding = 0

    def begin(self, plan: PlanView, competition: Round) -> None:
        self._left, self._asked = UNLIMITED, None
        planned = plan.token_budget - plan.budget_left
        if competition.is_fair:
            self._num_decoding = competition.num_decoding
            planned += competition.num_decoding
        wanted = sum(request.num_uncomputed for request in competition.prompts)
        wanted += sum(request.num_uncomputed for request in competition.candidates)
        target = self._target(min(planned + wanted, plan.token_budget))
        if target is not None:
            self._left = max(0, target - planned)

    def _target(self, num_tokens: int) -> int | None:
        """What to trim a step of `num_tokens` to; None to leave it."""
        if num_tokens > self._buckets.mixed_tokens[-1]:
            below = num_tokens - num_tokens % EAGER_UNIT
            above = below + EAGER_UNIT
        else:
            below, above = self._buckets.around(num_tokens)
        is_worth = num_tokens >= MIN_TOKENS and 0 < WORTH * (num_tokens - below) < above - num_tokens
        return below if is_worth and below >= self._num_decoding + self._block_size else None

    def __call__(self, request: Request, plan: PlanView) -> int:
        if self._left >= UNLIMITED:
            return UNLIMITED
        if self._asked is not None:
            request_id, before = self._asked
            self._left -= plan.num_scheduled.get(request_id, 0) - before
        self._asked = request.request_id, plan.num_scheduled.get(request.request_id, 0)
        return self._left
