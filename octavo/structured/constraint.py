"""Structured outputs on the engine's side: a gate that holds requests until their grammar is compiled, and the masks
of those that run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass

import msgspec
import numpy as np

from octavo.config.engine_config import StructuredConfig
from octavo.core.hooks import PlanView, Refusal
from octavo.core.request import Request
from octavo.core.step import StepPlan, TokenMasks
from octavo.core.structured import AUTO_ORDER, StructuredOutputsParams
from octavo.errors import InvalidRequest
from octavo.structured.compile import Compiled, Compiler
from octavo.structured.follower import Follower
from octavo.structured.grammar import MatcherFailed
from octavo.structured.vocabulary import Vocabulary


@dataclass(slots=True)
class _Live:
    request: Request
    form: StructuredOutputsParams
    follower: Follower
    compiled: Compiled


@dataclass(slots=True)
class _Pending:
    request: Request
    form: StructuredOutputsParams
    future: Future[Compiled]


class StructuredOutputs:
    """A gate and a constraint. Owned by the core's thread; only compiling happens elsewhere."""

    def __init__(
        self,
        open_vocabulary: Callable[[], Vocabulary],
        config: StructuredConfig = StructuredConfig(),  # noqa: B008
        num_threads: int = 1,
    ) -> None:
        self._config = config
        self._compiler = Compiler(open_vocabulary, num_threads)
        self._pending: dict[str, _Pending] = {}
        self._live: dict[str, _Live] = {}
        self._refusals: list[Refusal] = []
        self._news = threading.Event()  # a grammar is done

    def __bool__(self) -> bool:
        return bool(self._live or self._pending or self._refusals)

    def add(self, request: Request) -> None:
        form = request.params.structured_outputs
        if form is None:
            return
        if not request.eos_token_ids:
            raise InvalidRequest(
                f"{form.field} needs a token that ends the output, and this model has none", form.field
            )
        form = self._with_defaults(form)
        asked = form.backend
        order = self._config.backends if asked is None else AUTO_ORDER if asked == "auto" else (asked,)
        future = self._compiler.compile(form, order)
        self._pending[request.request_id] = _Pending(request, form, future)
        future.add_done_callback(lambda _: self._news.set())

    def open(self, request: Request, plan: PlanView) -> bool:
        pending = self._pending.get(request.request_id)
        if pending is None:
            return True
        if not pending.future.done() or pending.future.exception() is not None:
            return False
        del self._pending[request.request_id]
        compiled = pending.future.result()
        follower = Follower(compiled.grammar, self._compiler.vocabulary, pending.form.thinking)
        self._live[request.request_id] = _Live(request, pending.form, follower, compiled)
        return True

    def masks(self, plan: StepPlan) -> TokenMasks | None:
        live = [entry for entry in self._live.values() if entry.request.request_id in plan.num_scheduled_tokens]
        if not live:
            return None
        place_of = {request_id: i for i, request_id in enumerate(plan.sampled)}
        rows: list[_Live] = []
        for entry in live:
            if entry.request.request_id in place_of and not entry.request.status.is_finished:
                try:
                    request = entry.request
                    entry.follower.follow(request.token_ids[request.num_prompt_tokens + entry.follower.num_seen :])
                except MatcherFailed as error:
                    self._refuse(entry, str(error))
                    continue
                rows.append(entry)
        if not rows:
            return None
        rows.sort(key=lambda entry: place_of[entry.request.request_id])
        bits = np.zeros((len(rows), self._compiler.vocabulary.num_words), dtype=np.int32)
        self._fill(rows, bits)
        self._set_ends(rows, bits)
        return TokenMasks([place_of[entry.request.request_id] for entry in rows], bits)

    def refusals(self) -> list[Refusal]:
        for request_id, pending in list(self._pending.items()):
            if pending.request.status.is_finished:
                del self._pending[request_id]
            elif pending.future.done() and (error := pending.future.exception()) is not None:
                del self._pending[request_id]
                self._refusals.append(Refusal(request_id, str(error), pending.form.field, "InvalidRequest"))
        for request_id, entry in list(self._live.items()):
            if entry.request.status.is_finished:
                del self._live[request_id]
        refusals, self._refusals = self._refusals, []
        return refusals

    def wait(self, seconds: float) -> None:
        if any(pending.future.done() for pending in self._pending.values()):
            return
        self._news.wait(seconds)
        self._news.clear()

    def shutdown(self) -> None:
        self._compiler.shutdown()
        self._pending.clear()
        self._live.clear()

    def _with_defaults(self, form: StructuredOutputsParams) -> StructuredOutputsParams:
        config = self._config
        return msgspec.structs.replace(
            form,
            disable_any_whitespace=form.disable_any_whitespace
            or (config.disable_any_whitespace and form.whitespace_pattern is None),
            disable_additional_properties=form.disable_additional_properties or config.disable_additional_properties,
        )

    def _fill(self, rows: list[_Live], bits: np.ndarray) -> None:
        """Many at once where the backend can, the others one by one."""
        together: dict[int, list[int]] = {}
        for i, entry in enumerate(rows):
            if entry.follower.is_thinking:
                bits[i] = self._compiler.vocabulary.all_words
                continue
            if hasattr(entry.compiled.backend, "fill_all") and not entry.follower.opening_ids():
                together.setdefault(id(entry.compiled.backend), []).append(i)
                continue
            try:
                entry.follower.fill(bits, i)
            except MatcherFailed as error:
                self._refuse(entry, str(error))
        for places in together.values():
            matchers = [(rows[i].follower.matcher, i) for i in places]
            rows[places[0]].compiled.backend.fill_all(matchers, bits)  # type: ignore[attr-defined]
            for i in places:
                try:
                    rows[i].follower.matcher.check()  # type: ignore[union-attr]
                except MatcherFailed as error:
                    self._refuse(rows[i], str(error))

    def _set_ends(self, rows: list[_Live], bits: np.ndarray) -> None:
        """A request's own end tokens where its grammar may end: under ignore_eos only where nothing else can follow.
        Rows for which nothing can be sampled then are refused, and what is sampled for them is dropped."""
        vocabulary = self._compiler.vocabulary
        can_end = np.zeros(len(rows), dtype=bool)
        for token_id in vocabulary.eos_token_ids:
            word, bit = token_id // 32, _BITS[token_id % 32]
            can_end |= (bits[:, word] & bit) != 0
            bits[:, word] &= ~bit
        has_texts: list[bool] = np.any(bits, axis=1).tolist()
        for entry, ends, has_text, words in zip(rows, can_end.tolist(), has_texts, bits, strict=True):
            request = entry.request
            if entry.follower.is_thinking:
                continue  # thoughts are not the answer
            is_early = request.num_output_tokens < request.params.min_tokens  # the sampler holds stop tokens back
            if is_early and has_text and request.stop_token_ids:
                has_text = self._has_others(words, request.stop_token_ids)
            if request.request_id not in self._live:
                words[:] = vocabulary.all_words
            elif not has_text and (is_early or not ends):
                self._refuse(entry, _why_stuck(request, ends or is_early))
                words[:] = vocabulary.all_words
            elif ends and not (request.params.ignore_eos and has_text):
                for token_id in request.eos_token_ids:
                    if token_id < vocabulary.size:
                        words[token_id // 32] |= _BITS[token_id % 32]

    def _has_others(self, words: np.ndarray, token_ids: Iterable[int]) -> bool:
        rest = words.copy()
        for token_id in token_ids:
            if token_id < self._compiler.vocabulary.size:
                rest[token_id // 32] &= ~_BITS[token_id % 32]
        return bool(rest.any())

    def _refuse(self, entry: _Live, why: str) -> None:
        request_id = entry.request.request_id
        if self._live.pop(request_id, None) is not None:
            self._refusals.append(Refusal(request_id, f"{entry.form.field}: {why}", None, None))


def _why_stuck(request: Request, is_complete: bool) -> str:
    if not is_complete:
        return "no token of this model goes on with it"
    done, wanted = request.num_output_tokens, request.params.min_tokens
    return f"it is complete after {done} tokens, but min_tokens is {wanted}"


_BITS = np.left_shift(np.uint32(1), np.arange(32, dtype=np.uint32)).view(np.int32)
