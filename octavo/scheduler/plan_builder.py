"""One step's decisions under construction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from octavo.cache.manager import CacheManager
from octavo.core.messages import StepShare
from octavo.core.prompt_logprobs import PromptScores
from octavo.core.request import Request
from octavo.core.step import BlockIds, NewRow, StepPlan


@dataclass(slots=True)
class CatchUps:
    """What running rows gained without computing it; kept until a plan carries it to the runner."""

    skipped: dict[str, int] = field(default_factory=dict)
    block_ids: dict[str, BlockIds] = field(default_factory=dict)

    def drop(self, request_id: str) -> None:
        self.skipped.pop(request_id, None)
        self.block_ids.pop(request_id, None)


class PlanBuilder:
    """Collects grants; `finish` checks its own sums and makes the StepPlan."""

    def __init__(self, step_id: int, token_budget: int, carried: CatchUps) -> None:
        self.step_id = step_id
        self.token_budget = token_budget
        self.budget_left = token_budget
        self.num_scheduled: dict[str, int] = {}
        self.sampled: list[Request] = []
        self.scored: dict[str, tuple[int, int]] = {}
        self.preempted: list[Request] = []
        self.num_cached_tokens = 0
        self.num_prefill_tokens = 0
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0
        self.first_tokens: list[tuple[Request, int]] = []  # requests whose first token this step samples, their epochs
        self._new: dict[str, Request] = {}
        self._new_computed: dict[str, int] = {}
        self._block_ids = carried.block_ids
        self._skipped = carried.skipped

    def start(self, request: Request) -> None:
        """The request gets a row in this step; its computed tokens are those of its hit."""
        self._new[request.request_id] = request
        self._new_computed[request.request_id] = request.num_computed_tokens

    def skip(self, request: Request, num_tokens: int, block_ids: BlockIds) -> None:
        """Tokens that turned up in the cache since the request's last chunk."""
        assert request.request_id not in self.num_scheduled
        self._skipped[request.request_id] = self._skipped.get(request.request_id, 0) + num_tokens
        self.num_cached_tokens += num_tokens
        if not request.num_preemptions:
            self.num_prefix_hits += num_tokens
        self.append_blocks(request, block_ids)

    def shares(self, requests: Mapping[str, Request]) -> list[StepShare]:
        """What each request got, for whoever watches."""
        shares = []
        for request_id, num_tokens in self.num_scheduled.items():
            request = requests[request_id]
            start = request.num_computed_tokens - num_tokens
            is_prefill = start < request.num_prompt_tokens or start < request.num_tokens - 1
            cached = self._new_computed.get(request_id, 0) + self._skipped.get(request_id, 0)
            shares.append(StepShare(request_id, num_tokens, cached, is_prefill))
        return shares

    def append_blocks(self, request: Request, block_ids: BlockIds) -> None:
        if request.request_id in self._new:
            return  # a new row is sent with its whole table
        known = self._block_ids.get(request.request_id)
        if known is not None:
            block_ids = tuple(old + new for old, new in zip(known, block_ids, strict=True))
        self._block_ids[request.request_id] = block_ids

    def grant(self, request: Request, num_tokens: int) -> None:
        """`num_tokens` more of this request are computed in this step; a sample follows the last expected one."""
        assert 0 < num_tokens <= self.budget_left
        request_id = request.request_id
        self.num_scheduled[request_id] = self.num_scheduled.get(request_id, 0) + num_tokens
        self.budget_left -= num_tokens
        request.num_computed_tokens += num_tokens
        if request.scores is not None:
            self._score(request, request.scores, num_tokens)
        if request.num_computed_tokens == request.num_expected_tokens:
            request.num_expected_tokens += 1
            self.sampled.append(request)

    def _score(self, request: Request, scores: PromptScores, num_tokens: int) -> None:
        positions = scores.plan(request.num_computed_tokens - num_tokens, request.num_computed_tokens)
        if positions is not None:
            first, end = positions
            first = self.scored.get(request.request_id, positions)[0]  # of the step's first grant
            self.scored[request.request_id] = first, end

    def finish(self, removed: list[str], cache: CacheManager) -> StepPlan:
        total = sum(self.num_scheduled.values())
        assert total == self.token_budget - self.budget_left <= self.token_budget
        removed = removed + [request.request_id for request in self.preempted]
        new_rows = [
            NewRow(
                request_id,
                list(request.token_ids),
                request.num_prompt_tokens,
                self._new_computed[request_id],
                cache.block_ids(request),
                request.params,
                request.eos_token_ids,
                request.seed,
            )
            for request_id, request in self._new.items()
        ]
        return StepPlan(
            self.step_id,
            self.num_scheduled,
            new_rows,
            removed,
            self._block_ids,
            self._skipped,
            [request.request_id for request in self.sampled],
            cache.take_copies(),
            scored=self.scored,
        )
