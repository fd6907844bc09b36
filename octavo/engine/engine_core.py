"""The loop: schedule, submit, finish, update. Also what happens when a step fails."""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from octavo.core.hooks import Constraint
from octavo.core.messages import CoreStats, Delta, StepOutputs, StepStats, Submit
from octavo.core.params import LogprobsMode, RequestOutputKind
from octavo.core.prompt_logprobs import PromptScores
from octavo.core.request import Request
from octavo.core.step import StepPlan
from octavo.engine.beams import BeamSearches
from octavo.engine.recovery import Quarantine, StepLimit
from octavo.errors import InvalidRequest, OutOfMemory, PromptTooLong
from octavo.executor.executor import Executor, StepHandle
from octavo.sampling.request_processors import RequestProcessors
from octavo.scheduler.scheduler import Planned, Scheduler

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 0.005  # that a step without work waits for a constraint: new requests wait as long


class EngineCore:
    """Owned by one thread. `max_total_tokens` is what the model and an empty cache can hold of one request."""

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        depth: int,
        max_total_tokens: int,
        seed: int,
        constraint: Constraint | None = None,
        processors: RequestProcessors | None = None,
        vocab_size: int = 1 << 31,
        logprobs_mode: LogprobsMode = "raw_logprobs",
    ) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.depth = depth
        self.max_total_tokens = max_total_tokens
        self._vocab_size, self._logprobs_mode = vocab_size, logprobs_mode
        self._constraint = constraint
        self._processors = processors or RequestProcessors()
        self._in_flight: deque[StepHandle] = deque()
        self._quarantine = Quarantine()
        self._limit = StepLimit(scheduler.token_budget)
        self._suspected_before = 0  # steps before this one were planned without regard to who is suspected
        self._random = random.Random(seed)
        self._beams = BeamSearches(scheduler.add, scheduler.abort)
        self._pending: list[Delta] = []  # ends that no step brought: aborts and failures
        self._started: list[str] = []  # that the next outputs report
        # told which requests get a row, before the forward that might fail
        self.on_start: Callable[[list[str]], None] = self._started.extend
        self._watched_until = 0.0  # of `time.perf_counter`
        self._num_corrupted = 0  # since the last statistics

    def add(self, submit: Submit) -> None:
        """Raises InvalidRequest; nothing has changed then."""
        num_prompt = len(submit.prompt_token_ids)
        if num_prompt >= self.max_total_tokens:
            raise PromptTooLong(
                num_prompt,
                self.max_total_tokens - 1,
                "the engine's context (model and cache) less one token to generate",
            )
        params = self._processors.bind(submit.params)
        limit = self.max_total_tokens
        if params.max_tokens is not None:
            limit = min(limit, num_prompt + params.max_tokens)
        detection = params.repetition_detection
        # an output of a set form ends with it, ignore_eos or not
        ignores_eos = params.ignore_eos and params.structured_outputs is None
        request = Request(
            submit.request_id,
            list(submit.prompt_token_ids),
            params,
            submit.arrival_time,
            priority=submit.priority,
            seed=submit.seed if submit.seed is not None else self._random.getrandbits(63),
            max_total_tokens=limit,
            stop_token_ids=frozenset(params.stop_token_ids or ()),
            eos_token_ids=frozenset() if ignores_eos else frozenset(submit.eos_token_ids),
            detection=detection if detection is not None and detection.max_pattern_size else None,
            cache_keys=(("cache_salt", submit.cache_salt),) if submit.cache_salt is not None else (),
            streams=params.output_kind != RequestOutputKind.FINAL_ONLY or bool(params.stop),
            scores=PromptScores.of(params, num_prompt, self._vocab_size, self._logprobs_mode),
        )
        if params.use_beam_search:
            self._beams.start(request)
            return
        self.scheduler.add(request)
        if self._constraint is not None:
            try:
                self._constraint.add(request)
            except InvalidRequest:
                self.scheduler.abort([request.request_id])
                raise

    def abort(self, request_ids: Iterable[str]) -> None:
        request_ids = list(request_ids)
        if self._beams:
            self._pending += self._beams.abort(request_ids)
        self._pending += self.scheduler.abort(request_ids)

    def reset_prefix_cache(self) -> bool:
        """Forgets cached prefixes. False while requests hold blocks."""
        return self.scheduler.cache.reset()

    def stats(self) -> CoreStats:
        scheduler, pool = self.scheduler, self.scheduler.cache.pool
        num_blocks = pool.num_slabs * pool.blocks_per_slab[0]
        return CoreStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_blocks=num_blocks,
            num_used_blocks=round(scheduler.cache.usage * num_blocks),
        )

    def watch(self, seconds: float) -> None:
        """For so long, each step's statistics say what each request got of it. Who goes on watching asks again."""
        self._watched_until = max(self._watched_until, time.perf_counter() + seconds)

    def shutdown(self) -> None:
        """Ends everything in progress and gives the device's memory back. May be called again."""
        self.abort(list(self.scheduler.requests))
        self._in_flight.clear()
        if self._constraint is not None:
            self._constraint.shutdown()
        self.executor.shutdown()

    def has_work(self) -> bool:
        return bool(self.scheduler.num_unfinished or self._in_flight or self._pending)

    def step(self) -> StepOutputs:
        """Keeps `depth` steps in flight: 1 is synchronous, 2 plans and submits the next while this one runs. Returns
        what the oldest brought."""
        started = time.perf_counter()
        scheduling = 0.0
        self.scheduler.is_watched = started < self._watched_until
        if self._quarantine:
            self._quarantine.retain(self.scheduler.requests)
        depth = 1 if self._quarantine else self.depth
        while len(self._in_flight) < depth:
            before = time.perf_counter()
            plan = self.scheduler.schedule(only=self._quarantine.group)
            scheduling += time.perf_counter() - before
            if plan is None:
                break
            handle = None
            if plan.new_rows:
                self.on_start([row.request_id for row in plan.new_rows])
            try:
                handle = self.executor.submit(plan)  # the forward of N + 1 goes out while N runs
                if not self._in_flight:
                    self._finish(handle)  # nothing before it is unknown
            except Exception as error:
                return self._recover(plan, error)
            self._in_flight.append(handle)
        if not self._in_flight:
            if self._constraint:
                self._refuse()
                if not self._pending:
                    self._constraint.wait(_IDLE_SECONDS)
            if self._quarantine and not self._pending:
                self._unblock_quarantine()
            return self._outputs([], self._idle_stats())
        handle = self._in_flight.popleft()
        try:
            result = handle.wait()
        except Exception as error:
            return self._recover(handle.plan, error)
        if self._limit.tokens < self._limit.most:
            self._limit.passed()
            self.scheduler.token_budget = self._limit.tokens
        before = time.perf_counter()
        planned = self.scheduler.planned(handle.plan)
        proven = self._proven(planned, result.failed) if self._quarantine else []
        deltas = self.scheduler.update(handle.plan, result)
        if result.refused:
            deltas += self._refuse_rows(planned, result.refused)
        if result.failed:
            deltas += self._isolate(result.failed, handle.plan.step_id)
        if self._quarantine:
            self._clear_suspects(proven)
        updating = time.perf_counter() - before
        if self._in_flight:
            try:
                self._finish(self._in_flight[0])  # N's tokens are known: what N + 1 samples with can be made
            except Exception as error:
                self._pending += deltas
                return self._recover(self._in_flight[0].plan, error)
        stats = StepStats(
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting),
            num_scheduled_tokens=handle.plan.total_tokens,
            num_prefill_tokens=planned.num_prefill_tokens,
            num_cached_tokens=planned.num_cached_tokens,
            num_preempted=planned.num_preempted,
            cache_usage=self.scheduler.cache.usage,
            schedule_seconds=scheduling,
            update_seconds=updating,
            step_seconds=time.perf_counter() - started,
            num_deferred=planned.num_deferred,
            num_prompt_tokens=planned.num_prompt_tokens,
            num_prompt_tokens_cached=planned.num_prompt_tokens_cached,
            num_generated_tokens=planned.num_generated_tokens,
            num_prefix_queries=planned.num_prefix_queries,
            num_prefix_hits=planned.num_prefix_hits,
            num_corrupted=self._num_corrupted,
            shares=planned.shares,
            block_lives=self.scheduler.cache.take_lives(),
        )
        self._num_corrupted = 0
        return self._outputs(deltas, stats)

    def _finish(self, handle: StepHandle) -> None:
        """Lets a step sample, within what constraints allow."""
        if not self._constraint:
            handle.finish()
            return
        masks = self._constraint.masks(handle.plan)
        self._refuse()
        handle.finish(masks)

    def _refuse(self) -> None:
        """Ends whom the constraint refuses; what is sampled for them in steps in flight is dropped."""
        assert self._constraint is not None
        for refusal in self._constraint.refusals():
            logger.info("request %s ends: %s", refusal.request_id, refusal.error)
            for delta in self.scheduler.fail(refusal.request_id, refusal.error):
                self._pending.append(
                    msgspec.structs.replace(delta, error_type=refusal.error_type, error_field=refusal.field)
                )

    def _idle_stats(self) -> StepStats | None:
        """After ends that no step brought: who is left."""
        if not self._pending:
            return None
        scheduler = self.scheduler
        return StepStats(len(scheduler.running), len(scheduler.waiting), cache_usage=scheduler.cache.usage, num_steps=0)

    def _outputs(self, deltas: list[Delta], stats: StepStats | None) -> StepOutputs:
        if self._pending:
            deltas, self._pending = self._pending + deltas, []
        started, self._started[:] = self._started.copy(), []
        if self._beams:
            started = self._beams.owners(started)
            deltas = self._beams.absorb(deltas)
        return StepOutputs(deltas, stats, started)

    # failures

    def _recover(self, failed: StepPlan, error: Exception) -> StepOutputs:
        """A step raised. Steps in flight are dropped and everything in progress starts over from what earlier steps
        completed: in smaller steps if there was too little memory, else with the rows of the failed step apart."""
        suspects = list(failed.num_scheduled_tokens)
        logger.warning("a step of %d requests failed: %s: %s", len(suspects), type(error).__name__, error)
        dropped = [handle.plan.step_id for handle in self._in_flight]
        self._in_flight.clear()
        self.executor.reset()
        self.scheduler.withdraw([failed.step_id, *dropped])
        deltas: list[Delta] = []
        if isinstance(error, OutOfMemory) and self._limit.fail(failed.total_tokens):
            self.scheduler.token_budget = self._limit.tokens
            logger.warning("steps are of at most %d tokens until memory suffices for more", self._limit.tokens)
        elif self._quarantine:
            guilty = self._quarantine.split()
            if guilty is not None:
                deltas = self._condemn(guilty, f"{type(error).__name__}: {error}")
                self._limit = StepLimit(self._limit.most)  # it was not the size
                self.scheduler.token_budget = self._limit.tokens
        else:
            self._suspect([suspects])
        return self._outputs(deltas, None)

    def _isolate(self, failed: dict[str, str], step_id: int) -> list[Delta]:
        """Rows whose results were not finite. Whoever is flagged while running alone is guilty; others may only have
        read what a guilty one wrote, so each is tried alone on a cache that nobody else has touched. A step that was in
        flight when they came under suspicion says nothing new of them."""
        deltas: list[Delta] = []
        group = self._quarantine.group
        if step_id < self._suspected_before:
            failed = {name: reason for name, reason in failed.items() if name not in self._quarantine}
        for request_id, reason in failed.items():
            self.scheduler.distrust(request_id)
            if group == [request_id]:
                self._num_corrupted += 1
                deltas += self._condemn(request_id, reason)
        suspects = [[request_id] for request_id in failed if request_id in self.scheduler.requests]
        if suspects:
            self._suspect(suspects)
        return deltas

    def _refuse_rows(self, planned: Planned, refused: dict[str, str]) -> list[Delta]:
        """They end at once: there is nothing to find out, and they harmed nobody."""
        deltas: list[Delta] = []
        for request in planned.sampled:
            request_id = request.request_id
            if request_id in refused and self.scheduler.requests.get(request_id) is request:
                deltas += self._condemn(request_id, refused[request_id])
        return deltas

    def _suspect(self, groups: list[list[str]]) -> None:
        live = self.scheduler.requests
        groups = [[request_id for request_id in group if request_id in live] for group in groups]
        for group in groups:
            for request_id in group:
                live[request_id].skip_cache_reads = True
        self._quarantine.suspect(groups)
        self._suspected_before = self.scheduler.next_step_id

    def _condemn(self, request_id: str, reason: str) -> list[Delta]:
        logger.warning("request %s ends: %s", request_id, reason)
        return self.scheduler.fail(request_id, reason)

    def _proven(self, planned: Planned, failed: dict[str, str]) -> list[str]:
        """Who gets a sound token from this step."""
        return [r.request_id for r in planned.sampled if r.epoch < planned.end and r.request_id not in failed]

    def _clear_suspects(self, proven: list[str]) -> None:
        live = self.scheduler.requests
        for request_id in proven:
            if request_id in live:
                live[request_id].skip_cache_reads = False
        self._quarantine.clear(proven)

    def _unblock_quarantine(self) -> None:
        """The group under suspicion cannot be planned beside the others' blocks: let it have the whole cache."""
        self.scheduler.preempt_all()
