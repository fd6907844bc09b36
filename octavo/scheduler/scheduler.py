"""Who runs next. One idea: every request has computed and expected tokens; each step hands out a token budget so that
computed catches up with expected. Prompts in chunks, cache hits, preemption and drafts all follow from it; there is no
prefill phase and no decode phase."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from octavo.cache.manager import CacheManager
from octavo.config.engine_config import SchedulerConfig
from octavo.core.hooks import Gate, Round, TokenCap
from octavo.core.messages import Delta, StepShare, Timing
from octavo.core.request import FINISH_REASONS, Request, RequestStatus
from octavo.core.step import StepPlan, StepResult
from octavo.errors import InvalidRequest
from octavo.scheduler.plan_builder import CatchUps, PlanBuilder
from octavo.scheduler.queues import QUEUES, RequestQueue
from octavo.scheduler.shared_prefixes import SharedPrefixes
from octavo.scheduler.stopping import repeats_itself, set_finished

GONE = sys.maxsize  # the epoch of requests that have ended: after all others


@dataclass(slots=True)
class Planned:
    """What the scheduler remembers of a step in flight. `sampled` is parallel to the plan's. Requests whose epoch is
    not before `end` have started over or ended since the step was planned."""

    sampled: list[Request]
    end: int
    num_prefill_tokens: int
    num_cached_tokens: int
    num_preempted: int
    num_prefix_queries: int = 0
    num_prefix_hits: int = 0
    num_deferred: int = 0
    first_tokens: list[tuple[Request, int]] = field(default_factory=list)  # brought to their first token; their epochs
    shares: list[StepShare] | None = None
    scored: list[tuple[Request, int]] = field(default_factory=list)  # whose prompts it scores; their epochs
    num_generated_tokens: int = 0  # from here on: known after the update
    num_prompt_tokens: int = 0
    num_prompt_tokens_cached: int = 0


class Scheduler:
    """Owned by the core's thread. `running` is in the order in which requests are served; the last is the first to be
    preempted, so a victim is never part of the plan that needs its blocks."""

    def __init__(
        self,
        config: SchedulerConfig,
        cache: CacheManager,
        caps: Sequence[TokenCap],
        gates: Sequence[Gate] = (),
        shared_prefixes: SharedPrefixes | None = None,
    ) -> None:
        self.token_budget = config.max_num_batched_tokens  # of a step; whoever finds it too much may lower it
        self.config = config
        self.cache = cache
        self.requests: dict[str, Request] = {}
        self.running: list[Request] = []
        self.waiting: RequestQueue = QUEUES[config.policy]()
        self.is_watched = False  # somebody wants each request's share of each step
        self._prompts: dict[str, Request] = {}  # the running ones with more than one token to compute
        self._caps = caps
        self._gates = gates
        self._shared_prefixes = shared_prefixes  # where attention can use them
        self._planned: dict[int, Planned] = {}
        self._removed: list[str] = []  # rows that the next plan drops
        self._carried = CatchUps()  # gains that the next plan reports
        self._next_step = 0
        self._next_epoch = 0
        self._num_deferred = 0  # seen while planning

    # requests come and go

    def add(self, request: Request) -> None:
        if request.request_id in self.requests:
            raise InvalidRequest(f"request_id {request.request_id!r} is in use by a live request", "request_id")
        self._renew(request)
        request.queued_time = time.monotonic()
        self.requests[request.request_id] = request
        self.waiting.add(request)

    def abort(self, request_ids: Iterable[str]) -> list[Delta]:
        """Unknown ids are no error: the request may just have finished."""
        return self._end(request_ids, RequestStatus.FINISHED_ABORTED)

    def fail(self, request_id: str, error: str) -> list[Delta]:
        return self._end([request_id], RequestStatus.FINISHED_ERROR, error)

    def _end(self, request_ids: Iterable[str], status: RequestStatus, error: str | None = None) -> list[Delta]:
        deltas = []
        for request_id in request_ids:
            request = self.requests.get(request_id)
            if request is None:
                continue
            if request.status is RequestStatus.RUNNING:
                self.running.remove(request)
            else:
                self.waiting.remove(request)
            was_running = request.status is RequestStatus.RUNNING
            request.status, request.error = status, error
            self._retire(request, has_row=was_running)
            deltas.append(self._last_delta(request, [], time.monotonic()))
        return deltas

    @property
    def next_step_id(self) -> int:
        return self._next_step

    @property
    def num_unfinished(self) -> int:
        return len(self.requests)

    def _renew(self, request: Request) -> None:
        """From here on, results of steps planned before are not this request's any more."""
        request.epoch = self._next_epoch
        self._next_epoch += 1
        request.num_expected_tokens = request.num_tokens
        request.num_computed_tokens = 0
        if request.scores is not None:
            request.scores.restart()

    # planning

    def schedule(self, only: Collection[str] | None = None) -> StepPlan | None:
        """The next step's plan; None if there is nothing to compute. `only` restricts it to these requests."""
        if not self.requests:
            return None
        plan = PlanBuilder(self._next_step, self.token_budget, self._carried)
        self.cache.begin(plan.step_id)
        self._make_room_for_urgent(plan, only)
        for is_fair in (True, False):
            candidates = self._candidates(plan, only)
            prompts = list(self._prompts.values())
            if prompts or candidates:
                competition = Round(prompts, candidates, len(self.running) - len(prompts), is_fair)
                for cap in self._caps:
                    cap.begin(plan, competition)
            if is_fair:
                self._continue_running(plan, only)
            else:
                self._continue_prompts(plan, prompts, only)
            if not plan.preempted:
                self._admit_waiting(plan, candidates)
            if plan.preempted or not plan.budget_left or not (self._prompts or candidates):
                break
        if not plan.num_scheduled:
            self._removed += [request.request_id for request in plan.preempted]
            return None
        self._next_step += 1
        removed, self._removed = self._removed, []
        self._carried = CatchUps()
        self._planned[plan.step_id] = Planned(
            plan.sampled,
            self._next_epoch,
            plan.num_prefill_tokens,
            plan.num_cached_tokens,
            len(plan.preempted),
            plan.num_prefix_queries,
            plan.num_prefix_hits,
            self._num_deferred,
            plan.first_tokens,
            plan.shares(self.requests) if self.is_watched else None,
            [(self.requests[name], self.requests[name].epoch) for name in plan.scored],
        )
        step = plan.finish(removed, self.cache)
        if self._shared_prefixes is not None:
            num_tokens = plan.token_budget - plan.budget_left
            step.shared_prefix = self._shared_prefixes.groups(plan.num_scheduled, num_tokens, len(self.running))
        return step

    def _candidates(self, plan: PlanBuilder, only: Collection[str] | None) -> list[Request]:
        """The waiting requests that could start now."""
        self._num_deferred = 0
        free_rows = self.config.max_num_seqs - len(self.running)
        if free_rows <= 0 or plan.preempted or not self.waiting:
            return []
        ready = (
            request
            for request in self.waiting
            if (only is None or request.request_id in only) and self._is_open(request, plan)
        )
        return list(islice(ready, free_rows))

    def _is_open(self, request: Request, plan: PlanBuilder) -> bool:
        """Do all gates let it start?"""
        for gate in self._gates:
            if not gate.open(request, plan):
                self._num_deferred += 1
                return False
        return True

    def _continue_running(self, plan: PlanBuilder, only: Collection[str] | None) -> None:
        """Rows in progress, in order. Most are decoding and have room in their last block: they ask nobody."""
        block_size = self.cache.block_size
        scheduled, sampled = plan.num_scheduled, plan.sampled
        # in plenty nobody can be refused, so rows that enter a new block are served together, after the others
        is_plenty = self.cache.has_plenty(2 * len(self.running) + plan.budget_left // block_size)
        entering: list[Request] = []
        budget_left = plan.budget_left
        for request in self.running:  # preempting takes from its end only
            if not budget_left:
                break
            if only is not None and request.request_id not in only:
                continue
            computed, expected = request.num_computed_tokens, request.num_expected_tokens
            if expected - computed == 1:
                if expected >= request.max_total_tokens:
                    continue  # its last token is in flight
                has_room = computed % block_size
                if has_room or is_plenty:
                    scheduled[request.request_id] = 1
                    budget_left -= 1
                    request.num_computed_tokens = expected
                    request.num_expected_tokens = expected + 1
                    sampled.append(request)
                    if not has_room:
                        entering.append(request)
                    continue
            plan.budget_left = budget_left
            if not self._advance(request, plan, may_preempt=True):
                return
            budget_left = plan.budget_left
        plan.budget_left = budget_left
        if entering:
            for request, block_ids in zip(entering, self.cache.enter_next_blocks(entering, plan.step_id), strict=True):
                plan.append_blocks(request, block_ids)

    def _continue_prompts(self, plan: PlanBuilder, prompts: list[Request], only: Collection[str] | None) -> None:
        """What is left of the budget, to prompts that the first round did not finish."""
        for request in prompts:
            if plan.budget_left and (only is None or request.request_id in only):
                self._advance(request, plan, may_preempt=False)

    def _advance(self, request: Request, plan: PlanBuilder, may_preempt: bool) -> bool:
        """Plans what `request` may have now. False if it had to make room itself."""
        num_new = 1 if request.num_uncomputed == 1 else self._chunk(request, plan)
        if num_new == 0:
            return True
        cache = self.cache
        if request.request_id not in plan.num_scheduled:
            cache.trim(request)
        block_ids = cache.reserve(request, num_new)
        while block_ids is None and may_preempt:
            victim = self.running[-1]
            self._preempt(victim, plan)
            if victim is request:
                return False
            block_ids = cache.reserve(request, num_new)
        if block_ids is not None:
            plan.append_blocks(request, block_ids)
            self._grant(request, num_new, plan)
        return True

    def _chunk(self, request: Request, plan: PlanBuilder) -> int:
        """How many tokens of a prompt in progress to compute now; first takes what others have computed meanwhile."""
        if request.request_id not in plan.num_scheduled:
            skipped, block_ids = self.cache.catch_up(request)
            if skipped:
                request.num_cached_tokens += skipped
                plan.skip(request, skipped, block_ids)
        if self.cache.waits_for_other(request):
            return 0
        return min(request.num_uncomputed, plan.budget_left, *(cap(request, plan) for cap in self._caps))

    def _admit_waiting(self, plan: PlanBuilder, candidates: Iterable[Request]) -> None:
        for request in candidates:
            if not plan.budget_left:
                return
            hit = self.cache.lookup(request)
            if self.cache.is_being_computed(request, hit.num_blocks):
                self._num_deferred += 1
                continue
            self.cache.plan_borders(request, hit)
            uncomputed = request.num_tokens - hit.num_blocks * self.cache.block_size
            num_new = min(uncomputed, plan.budget_left, *(cap(request, plan) for cap in self._caps))
            if num_new <= 0 or (num_new < uncomputed and not self.config.enable_chunked_prefill):
                continue
            if not self.cache.admit(request, hit, num_new, self.config.reserve_full_prompt):
                return  # those behind it wait too, or a large request would never get its turn
            self.waiting.remove(request)
            self._enter_running(request)
            if request.num_cached_tokens < 0:
                request.num_cached_tokens = request.num_computed_tokens
                request.scheduled_time = time.monotonic()
                if self.cache.enable_prefix_caching:
                    plan.num_prefix_queries += request.num_tokens
                    plan.num_prefix_hits += request.num_computed_tokens
            plan.num_cached_tokens += request.num_computed_tokens
            plan.start(request)
            self._grant(request, num_new, plan)

    def _enter_running(self, request: Request) -> None:
        request.status = RequestStatus.RUNNING
        self.running.append(request)
        if self.config.policy == "priority":
            self.running.sort(key=lambda r: r.order)

    def _grant(self, request: Request, num_new: int, plan: PlanBuilder) -> None:
        is_prompt = request.num_uncomputed > 1 or request.request_id in self._prompts
        if is_prompt:
            plan.num_prefill_tokens += num_new
        plan.grant(request, num_new)
        if not request.first_token_time and request.num_computed_tokens + 1 == request.num_expected_tokens:
            plan.first_tokens.append((request, request.epoch))
        self.cache.register(request, plan.step_id)
        if request.num_computed_tokens + 1 < request.num_expected_tokens:
            self._prompts[request.request_id] = request
            return
        if is_prompt:
            self._prompts.pop(request.request_id, None)
        if self._shared_prefixes is not None:
            self._shared_prefixes.join(request)

    # preemption

    def _preempt(self, victim: Request, plan: PlanBuilder | None = None, is_sound: bool = True) -> None:
        """Takes back everything; what the index remembers of it makes the way back short."""
        assert plan is None or victim.request_id not in plan.num_scheduled
        if self.running[-1] is victim:
            self.running.pop()
        else:
            self.running.remove(victim)
        self._give_back(victim, is_sound)
        self._renew(victim)
        victim.status = RequestStatus.PREEMPTED
        victim.num_preemptions += 1
        self.waiting.put_back(victim)
        if plan is None:
            self._removed.append(victim.request_id)
        else:
            plan.preempted.append(victim)

    def _make_room_for_urgent(self, plan: PlanBuilder, only: Collection[str] | None) -> None:
        """Under the priority policy, a waiting request that outranks a running one does not wait for it to finish."""
        if self.config.policy != "priority" or not self.waiting or only is not None:
            return
        urgent = next((r for r in self.waiting if all(gate.open(r, plan) for gate in self._gates)), None)
        if urgent is None or not self.running or self.running[-1].priority <= urgent.priority:
            return
        outranked = [r for r in reversed(self.running) if r.priority > urgent.priority]
        if not self._could_start(urgent):
            for victim in outranked:
                self._preempt(victim)
                if self._could_start(urgent):
                    return

    def _could_start(self, request: Request) -> bool:
        if len(self.running) >= self.config.max_num_seqs:
            return False
        return self.cache.could_admit(request, self.cache.lookup(request), 1, self.config.reserve_full_prompt)

    def withdraw(self, step_ids: Iterable[int]) -> None:
        """These steps failed or were dropped: everything in progress starts over from what earlier steps completed."""
        step_ids = list(step_ids)
        self.cache.withdraw(step_ids)
        for step_id in step_ids:
            self._planned.pop(step_id, None)
        for request in reversed(list(self.running)):
            self._preempt(request, is_sound=False)

    def distrust(self, request_id: str) -> None:
        """A row's results were unusable: it starts over, and nobody may find the blocks it wrote."""
        request = self.requests.get(request_id)
        if request is not None and request.status is RequestStatus.RUNNING:
            self.cache.forget(request)
            if request.scores is not None:
                request.scores.forget()
            self._preempt(request, is_sound=False)

    def preempt_all(self) -> None:
        for request in reversed(list(self.running)):
            self._preempt(request)

    # results

    def planned(self, plan: StepPlan) -> Planned:
        """What was counted when this step, not yet updated, was planned."""
        return self._planned[plan.step_id]

    def update(self, plan: StepPlan, result: StepResult) -> list[Delta]:
        """Appends the sampled tokens and ends what is finished. Results of requests that were aborted, finished or
        preempted meanwhile are dropped."""
        planned = self._planned.pop(plan.step_id)
        deltas: list[Delta] = []
        ended: list[Request] = []
        logprobs = result.logprobs
        failed = {**result.failed, **result.refused} if result.refused else result.failed
        now = time.monotonic()
        if planned.scored:
            self._take_scores(planned, result)
        starting = self._note_first_tokens(planned, failed, now)
        dropped = 0
        end = planned.end
        for request, token_id in zip(planned.sampled, result.token_ids, strict=True):
            if request.epoch >= end or (failed and request.request_id in failed):
                dropped += 1
                continue
            token_ids = request.token_ids
            token_ids.append(token_id)
            if logprobs and request.request_id in logprobs:
                request.logprobs.append(logprobs[request.request_id])
            if (
                len(token_ids) >= request.max_total_tokens
                or token_id in request.eos_token_ids
                or token_id in request.stop_token_ids
                or (request.detection is not None and repeats_itself(request))
            ):
                set_finished(request)
                ended.append(request)
                deltas.append(self._last_delta(request, [token_id], now))
            elif request.streams:
                given, request.logprobs = request.logprobs or None, []
                is_first = starting and len(token_ids) == request.num_prompt_tokens + 1
                timing = _timing(request, now) if is_first else None
                cached = request.num_cached_tokens
                delta = Delta(request.request_id, [token_id], logprobs=given, num_cached_tokens=cached, timing=timing)
                if is_first and request.scores is not None:
                    delta = msgspec.structs.replace(delta, prompt_rows=request.scores.take())
                deltas.append(delta)
        planned.num_generated_tokens = len(planned.sampled) - dropped
        if ended:
            gone = {id(request) for request in ended}
            self.running = [request for request in self.running if id(request) not in gone]
            for request in ended:
                self._retire(request, has_row=True)
        self.cache.settle(plan.step_id)
        return deltas

    def _note_first_tokens(self, planned: Planned, failed: Collection[str], now: float) -> bool:
        """True if this step brings anybody's first token."""
        starting = False
        for request, epoch in planned.first_tokens:
            if request.epoch == epoch and request.request_id not in failed and not request.first_token_time:
                request.first_token_time = now
                planned.num_prompt_tokens += request.num_prompt_tokens
                planned.num_prompt_tokens_cached += request.num_cached_tokens
                starting = True
                if request.scores is not None:
                    self.cache.note_scores(request, request.scores)  # with all checkpoints that its prompt has left
        return starting

    def _take_scores(self, planned: Planned, result: StepResult) -> None:
        """Log-probabilities of prompts: to whom they belong, and to the prefix cache."""
        for request, epoch in planned.scored:
            if request.epoch == epoch and request.request_id not in result.failed:
                assert request.scores is not None
                request.scores.add(result.prompt_rows[request.request_id])
                self.cache.note_scores(request, request.scores)

    def _retire(self, request: Request, has_row: bool) -> None:
        del self.requests[request.request_id]
        request.epoch = GONE
        if has_row:
            self._give_back(request)
            self._removed.append(request.request_id)

    def _give_back(self, request: Request, is_sound: bool = True) -> None:
        """Releases the blocks of a row; where its contents are sound, others may go on finding them."""
        if is_sound:
            self.cache.register(request, self._next_step - 1)
        self.cache.release(request, is_sound)
        self._prompts.pop(request.request_id, None)
        self._carried.drop(request.request_id)
        if self._shared_prefixes is not None:
            self._shared_prefixes.leave(request.request_id)

    def _last_delta(self, request: Request, new_token_ids: list[int], now: float) -> Delta:
        token_ids = new_token_ids if request.streams else request.token_ids[request.num_prompt_tokens :]
        return Delta(
            request.request_id,
            token_ids,
            finish_reason=int(FINISH_REASONS[request.status]),
            stop_reason=request.stop_reason,
            error=request.error,
            logprobs=request.logprobs or None,
            num_cached_tokens=max(0, request.num_cached_tokens),
            timing=_timing(request, now),
            prompt_rows=None if request.scores is None else request.scores.take(),
        )


def _timing(request: Request, now: float) -> Timing:
    """`now` is when its newest token came."""
    first = request.first_token_time
    return Timing(request.queued_time, request.scheduled_time, first, now if first else 0.0, request.num_preemptions)
