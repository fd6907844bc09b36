"""What the core's deltas mean to a user: text, stop strings, log-probabilities, finish reasons.

A step only appends to lists; `take` makes a RequestOutput of everything since the last one, so a reader that comes
late gets merged deltas, and who wants only the end pays for nothing else. No thread of its own, no locks: one thread
owns an OutputProcessor and everything it made.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.core.messages import Beam, Delta, StepOutputs, Submit, Timing
from octavo.core.outputs import (
    CompletionOutput,
    FlatLogprobs,
    Logprob,
    PositionLogprobs,
    RequestMetrics,
    RequestOutput,
    TokenLogprobs,
)
from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.core.prompt_logprobs import PromptRows
from octavo.core.request import FinishReason
from octavo.engine.detokenizer import Detokenizer, TokenText
from octavo.engine.prompt_logprobs import chosen_logprobs, flat_positions, prompt_positions
from octavo.engine.stop_strings import StopStrings
from octavo.telemetry.finished import FinishedCompletion, FinishedRequest
from octavo.telemetry.recorder import Recorder

_CUMULATIVE, _DELTA, _FINAL_ONLY = (
    RequestOutputKind.CUMULATIVE,
    RequestOutputKind.DELTA,
    RequestOutputKind.FINAL_ONLY,
)


@dataclass(slots=True)
class PreparedRequest:
    """A checked request: what the core is sent (a Submit for each completion that it makes; one for a beam search), and
    what it goes by."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    submits: list[Submit]


@dataclass(slots=True)
class ProcessedStep:
    """What one step changed."""

    changed: list[ActiveRequest] = field(default_factory=list)  # `take` has something for each
    stopped: list[str] = field(default_factory=list)  # ids that the core must abort: a stop string was completed


class Completion:
    """One completion of a request as it grows. With DELTA, what was taken is forgotten."""

    __slots__ = (
        "_decoded",
        "_detokenizer",
        "_num_taken",
        "_shown",
        "_stop_strings",
        "_token_text",
        "cumulative_logprob",
        "finish_reason",
        "first_token_time",
        "has_news",
        "index",
        "last_token_time",
        "logprob_rows",
        "num_tokens",
        "request",
        "stop_reason",
        "text",
        "timing",
        "token_ids",
    )

    def __init__(self, index: int, request: ActiveRequest, token_text: TokenText | None) -> None:
        params = request.params
        self.index, self.request, self._token_text = index, request, token_text
        self.token_ids: list[int] = []
        self.num_tokens = 0  # all of them; token_ids may hold the untaken ones only
        self._num_taken = 0  # of num_tokens
        self._decoded = 0  # of token_ids
        self.text = ""
        self._shown = 0  # log-probability rows that were turned into dictionaries
        has_rows = params.logprobs is not None or bool(params.logprob_token_ids)
        self.logprob_rows: list[TokenLogprobs | PositionLogprobs] | None = [] if has_rows else None
        has_sum = has_rows or request.is_ranked
        self.cumulative_logprob: float | None = 0.0 if has_sum else None
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.has_news = False
        self.first_token_time = self.last_token_time = 0.0  # when they came here; 0: not yet
        self.timing: Timing | None = None
        self._detokenizer: Detokenizer | None = None
        self._stop_strings: StopStrings | None = None
        if token_text is not None and params.detokenize:
            self._detokenizer = token_text.start(
                request.prompt_token_ids, params.skip_special_tokens, params.spaces_between_special_tokens
            )
            if params.stop:
                self._stop_strings = StopStrings(params.stop_strings, params.include_stop_str_in_output)

    def extend(self, delta: Delta) -> bool:
        """Takes in a step's tokens. True if they end the request and the core does not know: a stop string."""
        count = len(delta.token_ids)
        finish_reason = None if delta.finish_reason is None else FinishReason(delta.finish_reason)
        stop: str | None = None
        if self._stop_strings is not None and count:
            # A final token that itself means "stop" is not text.
            silent = finish_reason is FinishReason.STOP and not self.request.params.include_stop_str_in_output
            stop, count = self._search(delta.token_ids[: count - silent], count)
        self.token_ids += delta.token_ids if count == len(delta.token_ids) else delta.token_ids[:count]
        self.num_tokens += count
        if self.cumulative_logprob is not None and delta.logprobs:
            rows = delta.logprobs[:count]
            if self.logprob_rows is not None:
                self.logprob_rows += rows
            self.cumulative_logprob += sum(row.logprobs[0] for row in rows)
        self.has_news = True
        if stop is not None:
            self.finish(FinishReason.STOP, stop)
            return finish_reason is None
        if finish_reason is not None:
            self.finish(finish_reason, delta.stop_reason)
        return False

    def set_beam(self, beam: Beam) -> None:
        """All of it at once, from a beam search."""
        self.token_ids, self.num_tokens = beam.token_ids, len(beam.token_ids)
        self.cumulative_logprob = beam.cumulative_logprob
        if self.logprob_rows is not None:
            self.logprob_rows = list(beam.logprobs or ())
        self.finish(FinishReason(beam.finish_reason), beam.stop_reason)

    def _search(self, token_ids: list[int], count: int) -> tuple[str | None, int]:
        """Decodes token by token until a stop string completes: (it, number of tokens up to there)."""
        assert self._detokenizer is not None and self._stop_strings is not None
        min_tokens = self.request.params.min_tokens
        for position, token_id in enumerate(token_ids, start=1):
            may_stop = self.num_tokens + position > min_tokens
            shown, stop = self._stop_strings.push(self._detokenizer.push((token_id,)), may_stop)
            self.text += shown
            if stop is not None:
                return stop, position
        return None, count

    def finish(self, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        self.finish_reason, self.stop_reason, self.has_news = reason, stop_reason, True

    def is_due(self, interval: int) -> bool:
        """Is it time for an output of what came since the last one? `interval` is in tokens; 0: only the end counts."""
        request = self.request
        if interval == 0:
            return request.num_unfinished == 0
        if interval == 1 or self.finish_reason is not None or not self._num_taken:
            return True
        return self.num_tokens - self._num_taken >= interval

    def take(self, kind: RequestOutputKind) -> CompletionOutput:
        """Everything, or with DELTA what came since the last call."""
        if self._detokenizer is not None:
            self._decode(self._detokenizer)
        reason = self.finish_reason
        output = CompletionOutput(
            self.index,
            self.text,
            self.token_ids,
            self.cumulative_logprob,
            None if self.logprob_rows is None else self._positions(self.logprob_rows),
            None if reason is None else str(reason),
            self.stop_reason,
        )
        self.has_news, self._num_taken = False, self.num_tokens
        if kind is _DELTA:
            self.token_ids, self.text, self._decoded, self._shown = [], "", 0, 0
            if self.logprob_rows is not None:
                self.logprob_rows = []
        elif kind is _CUMULATIVE:  # the lists still grow
            output.token_ids = self.token_ids.copy()
        return output

    def _decode(self, detokenizer: Detokenizer) -> None:
        """Brings `text` up to `token_ids`."""
        stop_strings = self._stop_strings
        finished = self.finish_reason is not None
        if stop_strings is None:
            end = len(self.token_ids)
            if self.finish_reason is FinishReason.STOP and not self.request.params.include_stop_str_in_output:
                end -= 1  # an end-of-text token or one of stop_token_ids
            if end > self._decoded:
                self.text += detokenizer.push(self.token_ids[self._decoded : end])
            self._decoded = len(self.token_ids)
            if finished:
                self.text += detokenizer.flush()
        elif finished and not isinstance(self.stop_reason, str):
            shown, stop = stop_strings.push(detokenizer.flush(), may_stop=False)
            assert stop is None
            self.text += shown + stop_strings.flush()
        if finished:
            self._detokenizer = self._stop_strings = None

    def _positions(self, rows: list[TokenLogprobs | PositionLogprobs]) -> list[PositionLogprobs] | FlatLogprobs:
        if self.request.params.flat_logprobs:
            return self._flat(rows)
        for position in range(self._shown, len(rows)):
            row = rows[position]
            if isinstance(row, TokenLogprobs):
                rows[position] = self._dictionary(row)
        self._shown = len(rows)
        return [row for row in rows if isinstance(row, dict)]

    def _flat(self, rows: Iterable[Any]) -> FlatLogprobs:
        flat, text = FlatLogprobs(), self._token_text
        for row in rows:
            texts = [None if text is None else text.text_of(token_id) for token_id in row.token_ids]
            flat.append_fast(row.token_ids, row.logprobs, row.ranks, texts)
        return flat

    def _dictionary(self, row: TokenLogprobs) -> PositionLogprobs:
        text = self._token_text
        return {
            token_id: Logprob(logprob, rank, None if text is None else text.text_of(token_id))
            for token_id, logprob, rank in zip(row.token_ids, row.logprobs, row.ranks, strict=True)
        }


class ActiveRequest:
    """One request on its way: its completions, and what was taken of them."""

    __slots__ = (
        "completions",
        "ended",
        "error",
        "error_field",
        "error_type",
        "interval",
        "is_listed",
        "is_ranked",
        "metrics",
        "num_cached_tokens",
        "num_unfinished",
        "params",
        "prompt",
        "prompt_logprobs",
        "prompt_token_id_logprobs",
        "prompt_token_ids",
        "request_id",
        "submits",
        "trace_headers",
    )

    def __init__(self, prepared: PreparedRequest, token_text: TokenText | None, interval: int = 1) -> None:
        self.request_id, self.prompt = prepared.request_id, prepared.prompt
        self.prompt_token_ids, self.params = prepared.prompt_token_ids, prepared.params
        self.submits = prepared.submits
        self.metrics = RequestMetrics(arrival_time=prepared.submits[0].arrival_time)
        self.num_cached_tokens = 0
        self.error: str | None = None
        self.error_type: str | None = None  # of octavo.errors; None: it failed while it ran
        self.error_field: str | None = None
        self.is_listed = False  # in the `changed` of the step at hand
        params = prepared.params
        self.interval = 0 if params.output_kind is _FINAL_ONLY else params.stream_interval or interval
        self.is_ranked = params.num_candidates > params.n and not params.use_beam_search
        count = params.n if params.use_beam_search else len(prepared.submits)
        self.completions = [Completion(index, self, token_text) for index in range(count)]
        self.num_unfinished = len(self.completions)
        self.ended: list[FinishedCompletion] = []  # while somebody records them
        self.trace_headers: Mapping[str, str] = {}
        self.prompt_logprobs: list[PositionLogprobs | None] | FlatLogprobs | None = None
        self.prompt_token_id_logprobs: list[list[float]] | None = None

    def take_prompt_rows(self, rows: PromptRows, token_text: TokenText | None) -> None:
        params = self.params
        if params.prompt_logprobs is not None:
            make = flat_positions if params.flat_logprobs else prompt_positions
            self.prompt_logprobs = make(rows, None if token_text is None else token_text.text_of)
        if params.prompt_logprob_token_ids:
            self.prompt_token_id_logprobs = chosen_logprobs(rows, len(params.prompt_logprob_rows(1)[0]))

    @property
    def finished(self) -> bool:
        return self.num_unfinished == 0

    @property
    def streams(self) -> bool:
        """Tokens come as they are made, not all at the end: the same question as the core's `Request.streams`."""
        return self.params.output_kind is not _FINAL_ONLY or bool(self.params.stop)

    @property
    def num_output_tokens(self) -> int:
        return sum(completion.num_tokens for completion in self.completions)

    def take(self) -> RequestOutput | None:
        """What `output_kind` asks for, covering everything since the last call; None if there is nothing."""
        kind = self.params.output_kind
        if self.is_ranked:
            ready = self._best() if self.finished else []
        elif kind is _FINAL_ONLY:
            ready = self.completions if self.finished else []
        else:
            ready = [completion for completion in self.completions if completion.has_news]
        if not ready:
            return None
        last = max([completion.last_token_time for completion in self.completions])
        self.metrics.last_token_time = last or None
        prompt_logprobs, chosen = self.prompt_logprobs, self.prompt_token_id_logprobs
        if kind is _DELTA:
            self.prompt_logprobs = self.prompt_token_id_logprobs = None
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            outputs=[completion.take(kind) for completion in ready],
            finished=self.finished,
            num_cached_tokens=self.num_cached_tokens,
            metrics=self.metrics,
            prompt_logprobs=prompt_logprobs,
            prompt_token_id_logprobs=chosen,
            error=self.error,
        )

    def _best(self) -> list[Completion]:
        """The n of best_of completions that the model thinks likeliest; failed ones last."""
        failed = (FinishReason.ERROR, FinishReason.ABORT)
        ranked = sorted(
            self.completions, key=lambda one: (one.finish_reason in failed, -(one.cumulative_logprob or 0.0))
        )[: self.params.n]
        for index, completion in enumerate(ranked):
            completion.index = index
        return ranked


class OutputProcessor:
    """Routes deltas to completions. `token_text` is None where no tokenizer was loaded; `stream_interval` is for
    requests that do not say theirs."""

    def __init__(self, token_text: TokenText | None, stream_interval: int = 1) -> None:
        self.token_text, self._stream_interval = token_text, stream_interval
        self.recorder: Recorder | None = None
        self._processed = -1.0  # when the last step was taken in
        self._completions: dict[str, Completion] = {}  # by the id that the core knows

    @property
    def num_unfinished(self) -> int:
        """Completions that are under way."""
        return len(self._completions)

    def add(self, prepared: PreparedRequest) -> ActiveRequest:
        request = ActiveRequest(prepared, self.token_text, self._stream_interval)
        for submit, completion in zip(prepared.submits, request.completions, strict=False):  # a beam search has one
            assert submit.request_id not in self._completions
            self._completions[submit.request_id] = completion
        return request

    def process(self, outputs: StepOutputs) -> ProcessedStep:
        """Takes in one step. Deltas of requests that are over here already are passed by."""
        result = ProcessedStep()
        completions, recorder, now = self._completions, self.recorder, time.monotonic()
        previous, self._processed = self._processed, now
        num_regular = 0  # completions whose last tokens came with the step before
        intervals: dict[float, int] = {}  # of others: when their last tokens came -> how many such
        for delta in outputs.deltas:
            completion = completions.get(delta.request_id)
            if completion is None:
                continue
            request = completion.request
            if delta.token_ids:
                last = completion.last_token_time
                completion.last_token_time = now
                if last == previous:  # mostly: each step has a token for each
                    num_regular += 1
                elif last:
                    intervals[last] = intervals.get(last, 0) + 1
                else:
                    self._begin(completion, delta, now)
            if delta.num_cached_tokens > request.num_cached_tokens:
                request.num_cached_tokens = delta.num_cached_tokens
            if delta.error is not None and request.error is None:
                request.error, request.error_type, request.error_field = (
                    delta.error,
                    delta.error_type,
                    delta.error_field,
                )
            if delta.prompt_rows is not None:
                request.take_prompt_rows(delta.prompt_rows, self.token_text)
            if request.params.use_beam_search:
                self._end_search(request, delta, now)
            elif completion.extend(delta):
                result.stopped.append(delta.request_id)
            if completion.finish_reason is not None:
                del completions[delta.request_id]
                completion.timing = delta.timing or completion.timing
                self._end(completion, now)
            if not request.is_listed and completion.is_due(request.interval):
                request.is_listed = True
                result.changed.append(request)
        for request in result.changed:
            request.is_listed = False
        if recorder is not None:
            if num_regular:
                recorder.interval(now - previous, num_regular)
            for last, count in intervals.items():
                recorder.interval(now - last, count)
            if outputs.stats is not None:
                recorder.step(outputs.stats)
        return result

    def _begin(self, completion: Completion, delta: Delta, now: float) -> None:
        """Its first tokens are here."""
        request = completion.request
        completion.first_token_time, completion.timing = now, delta.timing
        if request.streams:
            if request.metrics.first_token_time is None:
                request.metrics.first_token_time = now
            if self.recorder is not None:
                self.recorder.first_token(now - request.metrics.arrival_time)

    def _end_search(self, request: ActiveRequest, delta: Delta, now: float) -> None:
        """All completions of a beam search, which ran under the id of the first; the caller ends that one."""
        found = request.completions if delta.beams is None else request.completions[: len(delta.beams)]
        request.num_unfinished -= len(request.completions) - len(found)
        request.completions = found
        for i, completion in enumerate(found):
            if delta.beams is not None:
                completion.set_beam(delta.beams[i])
                completion.first_token_time = completion.last_token_time = now
            else:
                completion.extend(delta)
            if i:
                completion.timing = delta.timing
                self._end(completion, now)

    def _end(self, completion: Completion, now: float) -> None:
        request = completion.request
        request.num_unfinished -= 1
        if self.recorder is not None:
            record_end(self.recorder, completion, now)

    def abort(self, requests: Iterable[ActiveRequest]) -> list[str]:
        """Ends what is unfinished of them with finish reason "abort". Returns the ids that the core must abort."""
        aborted, now = [], time.monotonic()
        for request in requests:
            aborted += [one.request_id for one in request.submits if self._completions.pop(one.request_id, None)]
            for completion in request.completions:
                if completion.finish_reason is None:
                    completion.finish(FinishReason.ABORT)
                    self._end(completion, now)
        return aborted


def record_end(recorder: Recorder, completion: Completion, now: float) -> None:
    """Tells of a completion that has ended, and of its request if it was the last."""
    request, timing = completion.request, completion.timing
    seconds = now - request.metrics.arrival_time
    ended = FinishedCompletion(
        str(completion.finish_reason),
        len(request.prompt_token_ids),
        request.num_cached_tokens,
        completion.num_tokens,
        seconds,
    )
    if request.streams:
        decoding = completion.last_token_time - completion.first_token_time
        ended.add_core_times(timing, decoding)
        if completion.first_token_time:
            ended.first_token_seconds = completion.first_token_time - request.metrics.arrival_time
    else:  # all tokens came at once, at the end: the core knows when they were made
        ended.add_core_times(timing)
        if ended.decode_seconds is not None and completion.num_tokens:
            ended.first_token_seconds = seconds - ended.decode_seconds
            recorder.first_token(ended.first_token_seconds)
            if completion.num_tokens > 1:
                others = completion.num_tokens - 1
                recorder.interval(ended.decode_seconds / others, others)
    recorder.completion(ended)
    request.ended.append(ended)
    if request.finished:
        tokens = [each.num_tokens for each in request.completions]
        recorder.request(
            FinishedRequest(
                request.request_id,
                request.params,
                ended.num_prompt_tokens,
                tokens,
                request.ended,
                request.trace_headers,
            )
        )
