"""Beam search: the n likeliest outputs, found with `width` beams that grow a token a round.

A beam's round is a request of its own for one more token, known to nobody outside: it finds its beginning in the prefix
cache, is batched with everything else, may be preempted and tried again like any other. When a group's round is
complete, its best continuations become the requests of the next. The rules of ranking and ending are those of
transformers' `generate(num_beams=...)`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from octavo.core.messages import Beam, Delta, Timing
from octavo.core.outputs import TokenLogprobs
from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.core.request import FinishReason, Request
from octavo.errors import InvalidRequest


@dataclass(slots=True)
class _Path:
    """One beam so far. `score` is set when it has ended."""

    token_ids: list[int]
    logprob: float  # the sum over its tokens
    rows: list[TokenLogprobs]
    score: float = 0.0


class _Growth(NamedTuple):
    """A beam and one of the tokens that may follow: that at `at` of a row of log-probabilities."""

    logprob: float
    path: _Path
    row: TokenLogprobs
    at: int

    def grow(self) -> _Path:
        row, at = self.row, self.at
        chosen = TokenLogprobs(
            [row.token_ids[at], *row.token_ids[1:]],
            [row.logprobs[at], *row.logprobs[1:]],
            [row.ranks[at], *row.ranks[1:]],
        )
        return _Path([*self.path.token_ids, row.token_ids[at]], self.logprob, [*self.path.rows, chosen])


@dataclass(slots=True)
class _Group:
    """One beam search."""

    first: Request  # what the core made of the submit: every round's requests are like it
    width: int
    num_kept: int  # continuations of a beam that are looked at
    child_params: SamplingParams
    max_new: int  # tokens
    waiting: dict[str, _Path] = field(default_factory=dict)  # this round's requests, by id
    growths: list[_Growth] = field(default_factory=list)  # what the round has brought
    ended: list[_Path] = field(default_factory=list)  # the best so far, best first
    num_cached_tokens: int = 0
    timing: Timing | None = None
    num_requests: int = 0

    @property
    def params(self) -> SamplingParams:
        return self.first.params

    def is_end(self, token_id: int) -> bool:
        return token_id in self.first.eos_token_ids or token_id in self.first.stop_token_ids

    def close_round(self) -> list[_Path]:
        """Takes in what the round has brought. Returns the beams that go on; none if the search is over."""
        best = [growth.grow() for growth in heapq.nlargest(self.num_kept, self.growths, key=lambda g: g.logprob)]
        self.growths = []
        num_new = len(best[0].token_ids) if best else self.max_new
        is_full = num_new >= self.max_new
        running: list[_Path] = []
        for place, path in enumerate(best):
            if not is_full and not self.is_end(path.token_ids[-1]):
                running.append(path)
            elif place < self.width and not (self.params.early_stopping and len(self.ended) >= self.width):
                path.score = path.logprob / num_new**self.params.length_penalty
                self.ended.append(path)
        self.ended = heapq.nlargest(self.width, self.ended, key=lambda path: path.score)
        running = running[: self.width]
        return [] if is_full or not running or self._is_decided(running[0], num_new) else running

    def _is_decided(self, best: _Path, num_new: int) -> bool:
        """Can nothing that still runs be better than the worst that has ended?"""
        if len(self.ended) < self.width:
            return False
        return self.params.early_stopping or best.logprob / num_new**self.params.length_penalty <= self.ended[-1].score

    def result(self) -> list[Beam]:
        wanted = self.params.logprobs
        beams = []
        for path in self.ended[: self.params.n]:
            last = path.token_ids[-1]
            is_stopped = self.is_end(last)
            beams.append(
                Beam(
                    path.token_ids,
                    path.logprob,
                    int(FinishReason.STOP if is_stopped else FinishReason.LENGTH),
                    last if is_stopped and last not in self.first.eos_token_ids else None,
                    None if wanted is None else [_cut(row, wanted) for row in path.rows],
                )
            )
        return beams


class BeamSearches:
    """Those in progress. Belongs to the core's thread. `add` and `abort` are the scheduler's."""

    def __init__(self, add: Callable[[Request], None], abort: Callable[[Iterable[str]], list[Delta]]) -> None:
        self._add, self._abort = add, abort
        self._groups: dict[str, _Group] = {}  # by the id of the submit
        self._owners: dict[str, str] = {}  # request of a round -> id of the submit

    def __bool__(self) -> bool:
        return bool(self._groups)

    def start(self, request: Request) -> None:
        """`request` as the core would run it if it were none of these. Raises InvalidRequest."""
        params, num_ends = request.params, len(request.eos_token_ids) + len(request.stop_token_ids)
        if request.request_id in self._groups:
            raise InvalidRequest(f"request_id {request.request_id!r} is in use by a live request", "request_id")
        width = params.num_candidates
        num_kept = max(2, 1 + num_ends) * width
        asked = params.logprobs or 0
        child = msgspec.structs.replace(
            params,
            n=1,
            best_of=None,
            use_beam_search=False,
            length_penalty=1.0,
            early_stopping=False,
            temperature=0.0,
            logprobs=asked if asked == -1 else max(asked, num_kept),
            logprobs_mode="processed_logprobs",
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        max_new = request.max_total_tokens - request.num_prompt_tokens
        group = _Group(request, width, num_kept, child, max_new)
        self._groups[request.request_id] = group
        try:
            self._begin_round(group, [_Path([], 0.0, [])])
        except InvalidRequest:
            self._drop(group)
            raise

    def abort(self, request_ids: Iterable[str]) -> list[Delta]:
        """Ends those of them that are beam searches."""
        groups = [self._groups[request_id] for request_id in request_ids if request_id in self._groups]
        return [self._end(group, Delta("", [], int(FinishReason.ABORT))) for group in groups]

    def owners(self, request_ids: Sequence[str]) -> list[str]:
        """Requests of rounds by the id that the front end knows."""
        return list(dict.fromkeys(self._owners.get(request_id, request_id) for request_id in request_ids))

    def absorb(self, deltas: list[Delta]) -> list[Delta]:
        """Keeps what is of a round, gives back the rest and the ends of searches. May add and abort requests."""
        others: list[Delta] = []
        for delta in deltas:
            owner = self._owners.pop(delta.request_id, None)
            group = None if owner is None else self._groups.get(owner)
            if owner is None:
                others.append(delta)
            elif group is not None:
                end = self._take(group, delta)
                if end is not None:
                    others.append(end)
        return others

    def _take(self, group: _Group, delta: Delta) -> Delta | None:
        path = group.waiting.pop(delta.request_id)
        group.num_cached_tokens = max(group.num_cached_tokens, delta.num_cached_tokens)
        group.timing = group.timing or delta.timing
        if delta.error is not None or delta.finish_reason == FinishReason.ABORT:
            return self._end(group, delta)
        assert delta.logprobs
        row = delta.logprobs[-1]
        for at in range(1, min(len(row.token_ids), 1 + group.num_kept)):
            if row.logprobs[at] > -math.inf:
                group.growths.append(_Growth(path.logprob + row.logprobs[at], path, row, at))
        if group.waiting:
            return None
        running = group.close_round()
        if not running:
            last = Delta("", [], int(FinishReason.STOP), beams=group.result(), timing=delta.timing)
            if not group.ended:
                last = Delta(
                    "", [], int(FinishReason.ERROR), error="no token that the request allows has a probability"
                )
            return self._end(group, last)
        self._begin_round(group, running)
        return None

    def _begin_round(self, group: _Group, paths: list[_Path]) -> None:
        first = group.first
        for path in paths:
            request = Request(
                f"{first.request_id}.{group.num_requests}",
                first.token_ids + path.token_ids,
                group.child_params,
                first.arrival_time,
                priority=first.priority,
                seed=first.seed,
                max_total_tokens=len(first.token_ids) + len(path.token_ids) + 1,
                stop_token_ids=first.stop_token_ids,
                eos_token_ids=first.eos_token_ids,
                cache_keys=first.cache_keys,
                streams=False,
            )
            request.num_prompt_tokens = (
                first.num_prompt_tokens
            )  # what came after is output: penalties know the difference
            group.num_requests += 1
            self._add(request)
            group.waiting[request.request_id] = path
            self._owners[request.request_id] = first.request_id

    def _end(self, group: _Group, last: Delta) -> Delta:
        self._drop(group)
        timing = last.timing
        if timing is not None and group.timing is not None:
            timing = msgspec.structs.replace(
                group.timing, last_token=timing.last_token, num_preemptions=timing.num_preemptions
            )
        return msgspec.structs.replace(
            last,
            request_id=group.first.request_id,
            token_ids=[],
            logprobs=None,
            num_cached_tokens=group.num_cached_tokens,
            timing=timing,
        )

    def _drop(self, group: _Group) -> None:
        del self._groups[group.first.request_id]
        self._abort(group.waiting)
        for request_id in group.waiting:
            self._owners.pop(request_id, None)


def _cut(row: TokenLogprobs, num_top: int) -> TokenLogprobs:
    end = len(row.token_ids) if num_top == -1 else 1 + num_top
    return TokenLogprobs(row.token_ids[:end], row.logprobs[:end], row.ranks[:end])
