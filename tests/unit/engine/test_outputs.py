"""Deltas become outputs: whatever the reader's pace, the pieces make up the whole."""

from __future__ import annotations

import random
import time
from itertools import chain
from typing import Any

import pytest

from octavo.core.messages import Beam, Delta, StepOutputs
from octavo.core.outputs import FlatLogprobs, RequestOutput, TokenLogprobs
from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.core.request import FinishReason
from octavo.engine.detokenizer import TokenText
from octavo.engine.inputs import InputProcessor, PromptLimits
from octavo.engine.outputs import ActiveRequest, OutputProcessor
from octavo.tokenization.tokenizer import Tokenizer
from tests.unit.engine.scripted import byte_fallback_tokenizer, byte_level_tokenizer

CUMULATIVE, DELTA, FINAL = RequestOutputKind.CUMULATIVE, RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY


class Desk:
    """A processor, and a core played by the test."""

    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        self.outputs = OutputProcessor(None if tokenizer is None else TokenText(tokenizer))
        self.inputs = InputProcessor(PromptLimits(100_000, 10_000, 20), tokenizer)
        self.stopped: list[str] = []

    def open(self, name: str = "r", prompt: Any = None, **params: Any) -> ActiveRequest:
        given = SamplingParams(max_tokens=1000, **params)
        return self.outputs.add(self.inputs.prepare([5, 6] if prompt is None else prompt, given, name))

    def step(self, request: ActiveRequest, ids: list[int], child: int = 0, **more: Any) -> list[ActiveRequest]:
        step = self.outputs.process(StepOutputs([Delta(request.submits[child].request_id, ids, **more)]))
        self.stopped += step.stopped
        return step.changed


def taken(request: ActiveRequest) -> RequestOutput:
    output = request.take()
    assert output is not None
    return output


def test_cumulative_outputs_hold_everything_and_do_not_change_later() -> None:
    desk = Desk()
    request = desk.open(detokenize=False)
    assert desk.step(request, [1, 2]) == [request]
    first = taken(request)
    assert request.take() is None
    desk.step(request, [3], finish_reason=FinishReason.LENGTH)
    second = taken(request)
    assert (first.outputs[0].token_ids, first.finished) == ([1, 2], False)
    assert (second.outputs[0].token_ids, second.finished) == ([1, 2, 3], True)
    assert second.outputs[0].finish_reason == "length"


def test_deltas_merge_for_a_late_reader() -> None:
    tokenizer = byte_level_tokenizer()
    desk = Desk(tokenizer)
    request = desk.open(output_kind=DELTA, logprobs=0)
    ids = tokenizer.encode("hello 你好")
    rows = [TokenLogprobs([i], [-1.0], [1]) for i in ids]
    desk.step(request, ids[:1], logprobs=rows[:1])
    first = taken(request).outputs[0]
    for i in range(1, len(ids) - 1):
        desk.step(request, ids[i : i + 1], logprobs=rows[i : i + 1])
    desk.step(request, ids[-1:], logprobs=rows[-1:], finish_reason=FinishReason.LENGTH)
    rest = taken(request).outputs[0]
    assert first.token_ids + rest.token_ids == ids and first.text + rest.text == "hello 你好"
    assert first.logprobs is not None and rest.logprobs is not None
    assert [next(iter(position)) for position in first.logprobs + rest.logprobs] == ids
    assert rest.cumulative_logprob == -1.0 * len(ids)


def test_final_only_is_silent_until_the_end() -> None:
    desk = Desk()
    request = desk.open(output_kind=FINAL, detokenize=False)
    assert desk.step(request, [1]) == [] and request.take() is None
    assert desk.step(request, [2], finish_reason=FinishReason.STOP, stop_reason=2) == [request]
    output = taken(request).outputs[0]
    assert (output.token_ids, output.finish_reason, output.stop_reason) == ([1, 2], "stop", 2)


def test_n_completions_end_one_by_one() -> None:
    desk = Desk()
    request = desk.open(n=3, detokenize=False)
    desk.step(request, [1], child=1, finish_reason=FinishReason.LENGTH)
    output = taken(request)
    assert [c.index for c in output.outputs] == [1] and not output.finished
    desk.step(request, [2], child=0, finish_reason=FinishReason.LENGTH)
    desk.step(request, [3], child=2, finish_reason=FinishReason.LENGTH)
    output = taken(request)
    assert [(c.index, c.token_ids) for c in output.outputs] == [(0, [2]), (2, [3])] and output.finished
    assert desk.outputs.num_unfinished == 0
    whole = desk.open("s", n=2, detokenize=False, output_kind=FINAL)
    desk.step(whole, [1], child=0, finish_reason=FinishReason.LENGTH)
    assert whole.take() is None
    desk.step(whole, [2], child=1, finish_reason=FinishReason.LENGTH)
    assert [c.token_ids for c in taken(whole).outputs] == [[1], [2]]


def test_the_token_that_says_stop_is_not_text() -> None:
    tokenizer = byte_level_tokenizer()
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    for kind in RequestOutputKind:
        for include, text in ((False, "a"), (True, "ab")):
            desk = Desk(tokenizer)
            request = desk.open(output_kind=kind, include_stop_str_in_output=include)
            desk.step(request, [a])
            before = request.take()
            desk.step(request, [b], finish_reason=FinishReason.STOP, stop_reason=b)
            shown = taken(request).outputs[0].text
            assert (before.outputs[0].text if before and kind is DELTA else "") + shown == text


def test_a_stop_string_ends_the_request_here_and_in_the_core() -> None:
    tokenizer = byte_level_tokenizer()
    desk = Desk(tokenizer)
    request = desk.open(stop=["stop"], output_kind=DELTA)
    ids = [i for character in "it stopped" for i in tokenizer.encode(character)]
    texts = []
    for token_id in ids:
        desk.step(request, [token_id])
        if (output := request.take()) is not None:
            texts.append(output.outputs[0].text)
            last = output
    assert "".join(texts) == "it " and texts[-1] == ""
    assert last.finished and last.outputs[0].finish_reason == "stop" and last.outputs[0].stop_reason == "stop"
    assert desk.stopped == [request.submits[0].request_id]
    assert desk.step(request, [1]) == []  # what the core said before it heard


def test_tokens_after_a_stop_string_are_dropped_with_their_logprobs() -> None:
    tokenizer = byte_level_tokenizer()
    desk = Desk(tokenizer)
    request = desk.open(stop=["b"], logprobs=0, output_kind=FINAL)
    ids = [tokenizer.encode(character)[0] for character in "abc"]
    rows = [TokenLogprobs([i], [-1.0], [1]) for i in ids]
    desk.step(request, ids, logprobs=rows, finish_reason=FinishReason.LENGTH)
    output = taken(request).outputs[0]
    assert (output.token_ids, output.text, output.finish_reason) == (ids[:2], "a", "stop")
    assert output.logprobs is not None and len(output.logprobs) == 2 and output.cumulative_logprob == -2.0
    assert desk.stopped == []  # the core had ended it already


def test_min_tokens_holds_for_stop_strings() -> None:
    tokenizer = byte_level_tokenizer()
    a = tokenizer.encode("a")[0]
    for min_tokens, expected in ((0, 1), (1, 2), (3, 4)):
        desk = Desk(tokenizer)
        request = desk.open(stop=["a"], min_tokens=min_tokens, output_kind=FINAL)
        while not request.finished:
            desk.step(request, [a])
        assert taken(request).outputs[0].token_ids == [a] * expected


def test_logprobs_are_dictionaries_with_text() -> None:
    tokenizer = byte_level_tokenizer()
    desk = Desk(tokenizer)
    request = desk.open(logprobs=2)
    a, b, c = (tokenizer.encode(character)[0] for character in "abc")
    desk.step(request, [a], logprobs=[TokenLogprobs([a, b, c], [-3.0, -0.1, -2.0], [3, 1, 2])])
    position = taken(request).outputs[0].logprobs[0]  # type: ignore[index]
    assert list(position) == [a, b, c]
    assert (position[a].logprob, position[a].rank, position[a].decoded_token) == (-3.0, 3, "a")
    desk.step(request, [b], logprobs=[TokenLogprobs([b, b, c], [-0.1, -0.1, -2.0], [1, 1, 2])])
    output = taken(request).outputs[0]
    assert output.logprobs is not None and len(output.logprobs) == 2 and list(output.logprobs[1]) == [b, c]
    assert output.cumulative_logprob == pytest.approx(-3.1)


def test_a_failure_and_an_abort_keep_what_there_was() -> None:
    desk = Desk()
    request = desk.open(detokenize=False)
    desk.step(request, [1])
    desk.step(request, [], finish_reason=FinishReason.ERROR, error="not finite")
    output = taken(request)
    assert (output.error, output.outputs[0].finish_reason, output.outputs[0].token_ids) == ("not finite", "error", [1])
    other = desk.open("other", n=2, detokenize=False)
    desk.step(other, [7], child=0, finish_reason=FinishReason.LENGTH)
    assert desk.outputs.abort([other]) == [other.submits[1].request_id]
    assert [c.finish_reason for c in taken(other).outputs] == ["length", "abort"]
    assert desk.outputs.abort([other]) == [] and desk.outputs.num_unfinished == 0


def test_times_and_cached_tokens() -> None:
    desk = Desk()
    request = desk.open(detokenize=False)
    desk.step(request, [1], num_cached_tokens=32)
    output = taken(request)
    metrics = output.metrics
    assert output.num_cached_tokens == 32
    assert metrics.first_token_time is not None and metrics.arrival_time <= metrics.first_token_time
    desk.step(request, [2])
    assert metrics.last_token_time is not None and metrics.last_token_time >= metrics.first_token_time


def played(
    draw: random.Random, desk: Desk, request: ActiveRequest, scripts: list[list[int]], ends: list[dict[str, Any]]
) -> list[tuple[str, list[int], Any]]:
    """(text, token ids, stop reason) of each completion, put together by a reader who comes when there is something,
    and not always then. `ends` say how the core ends each."""
    kind, interval = request.params.output_kind, request.params.stream_interval or 1
    texts: list[list[str]] = [[] for _ in scripts]
    token_ids: list[list[list[int]]] = [[] for _ in scripts]
    reasons: list[Any] = [None] * len(scripts)
    positions = [0] * len(scripts)
    while not request.finished:
        child = draw.choice([i for i, completion in enumerate(request.completions) if completion.finish_reason is None])
        size, position = draw.randint(1, 4), positions[child]
        positions[child] += size
        end = ends[child] if positions[child] >= len(scripts[child]) else {}
        changed = desk.step(request, scripts[child][position : position + size], child, **end)
        if not request.finished and (not changed or draw.random() < 0.3):
            continue
        if (output := request.take()) is None:
            continue
        for one in output.outputs:
            shown = texts[one.index]
            assert kind is not CUMULATIVE or one.text.startswith(shown[-1] if shown else "")
            if one.index == child and kind is DELTA and shown and not one.finished:
                assert len(one.token_ids) >= interval
            shown.append(one.text)
            token_ids[one.index].append(one.token_ids)
            reasons[one.index] = one.stop_reason
    if kind is DELTA:
        return [("".join(texts[i]), list(chain.from_iterable(token_ids[i])), reasons[i]) for i in range(len(scripts))]
    return [(texts[i][-1], token_ids[i][-1], reasons[i]) for i in range(len(scripts))]


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), byte_fallback_tokenizer()])
def test_streamed_pieces_make_the_final_text(tokenizer: Tokenizer) -> None:
    """Random tokens, stop strings and tokens, steps, intervals and reading paces: 500 cases for each tokenizer."""
    draw = random.Random(4)
    sentence = "the cat sat on the mat. END 你好 🙂 stop"
    alphabet = tokenizer.encode(sentence) + [draw.randrange(tokenizer.vocab_size) for _ in range(10)]
    for case in range(500):
        n = 2 if draw.random() < 0.2 else 1
        scripts = [[draw.choice(alphabet) for _ in range(draw.randint(1, 25))] for _ in range(n)]
        text = tokenizer.decode(scripts[0])
        stops = [text[i : i + draw.randint(1, 5)] for i in [draw.randrange(len(text) or 1) for _ in range(2)]]
        settings: dict[str, Any] = {
            "n": n,
            "stop": [stop for stop in stops if stop] if draw.random() < 0.7 else None,
            "stop_token_ids": draw.sample(alphabet, 2) if draw.random() < 0.3 else None,
            "include_stop_str_in_output": draw.random() < 0.3,
            "min_tokens": draw.choice([0, 0, 3]),
            "skip_special_tokens": draw.random() < 0.7,
            "stream_interval": draw.choice([None, 1, 3, 8]),
        }
        ends: list[dict[str, Any]] = [
            {"finish_reason": draw.choice([FinishReason.LENGTH, FinishReason.STOP])} for _ in scripts
        ]
        for child, script in enumerate(scripts):  # as the core does
            found = [i for i, token_id in enumerate(script) if token_id in (settings["stop_token_ids"] or ())]
            if found := [i for i in found if i >= settings["min_tokens"]]:
                ends[child] = {"finish_reason": FinishReason.STOP, "stop_reason": script[found[0]]}
                del script[found[0] + 1 :]
        finals = []
        for kind in RequestOutputKind:
            desk = Desk(tokenizer)
            request = desk.open(output_kind=kind, prompt=[5, 7], **settings)
            finals.append(played(draw, desk, request, scripts, ends))
        assert finals[0] == finals[1] == finals[2], f"case {case}"
        for (final_text, token_ids, stop), script, end in zip(finals[0], scripts, ends, strict=True):
            if isinstance(stop, str) and settings["min_tokens"] == 0:
                found = [s for s in settings["stop"] if s in final_text]
                assert final_text.endswith(stop) if settings["include_stop_str_in_output"] else not found
            if not isinstance(stop, str):
                assert token_ids == script and stop == end.get("stop_reason")


def test_a_step_of_1024_requests_costs_little() -> None:
    desk = Desk()
    requests = [desk.open(str(i), detokenize=False, output_kind=DELTA) for i in range(1024)]
    steps = [StepOutputs([Delta(request.submits[0].request_id, [step]) for request in requests]) for step in range(20)]
    seconds = []
    for step in steps:
        start = time.perf_counter()
        desk.outputs.process(step)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2e-3  # the best of 20: the machine may be busy


def test_the_best_of_several_are_returned() -> None:
    desk = Desk()
    request = desk.open(detokenize=False, n=2, best_of=4, temperature=1.0)
    assert len(request.submits) == 4
    assert all(submit.params.logprobs == 0 and submit.params.n == 1 for submit in request.submits)
    for child, (logprob, reason) in enumerate([(-3.0, "length"), (-1.0, "length"), (-2.0, "stop"), (-0.5, "error")]):
        row = TokenLogprobs([child], [logprob], [1])
        end = FinishReason[reason.upper()]
        changed = desk.step(request, [child], child, finish_reason=end, logprobs=[row], stop_reason=None)
        assert bool(changed) == (child == 3), "nothing before all are there"
    output = taken(request)
    assert [(one.index, one.token_ids, one.cumulative_logprob) for one in output.outputs] == [
        (0, [1], -1.0),
        (1, [2], -2.0),
    ], "a failed one comes last, whatever its probability"
    assert [one.logprobs for one in output.outputs] == [None, None], "nobody asked for them"
    plain = desk.open("plain", detokenize=False, n=2, best_of=2, temperature=1.0)
    assert [submit.params.logprobs for submit in plain.submits] == [None, None]


def test_a_stream_interval_collects_tokens_but_the_first() -> None:
    desk = Desk()
    request = desk.open(detokenize=False, output_kind=DELTA, stream_interval=3)
    pieces = []
    for token_id in range(9):
        last = token_id == 8
        if desk.step(request, [token_id], finish_reason=FinishReason.LENGTH if last else None):
            pieces.append(taken(request).outputs[0].token_ids)
    assert pieces == [[0], [1, 2, 3], [4, 5, 6], [7, 8]]
    engines = OutputProcessor(None, stream_interval=2)
    request = engines.add(desk.inputs.prepare([1], SamplingParams(detokenize=False, output_kind=DELTA), "own"))
    sizes = []
    for token_id in range(5):
        delta = Delta(request.submits[0].request_id, [token_id])
        if engines.process(StepOutputs([delta])).changed:
            sizes.append(len(taken(request).outputs[0].token_ids))
    assert sizes == [1, 2, 2]


def test_flat_logprobs_read_as_dictionaries_do() -> None:
    tokenizer = byte_level_tokenizer()
    rows = [TokenLogprobs([5, 6], [-0.5, -1.0], [1, 2]), TokenLogprobs([6, 5, 6], [-3.0, -0.25, -3.0], [2, 1, 2])]
    answers = []
    for flat in (False, True):
        desk = Desk(tokenizer)
        request = desk.open(logprobs=2, flat_logprobs=flat)
        desk.step(request, [5], logprobs=rows[:1])
        first = taken(request).outputs[0].logprobs
        desk.step(request, [6], logprobs=rows[1:], finish_reason=FinishReason.LENGTH)
        answers.append((first, taken(request).outputs[0].logprobs))
    (first, whole), (flat_first, flat_whole) = answers
    assert isinstance(flat_whole, FlatLogprobs) and flat_first is not None and whole is not None
    assert list(flat_first) == first and list(flat_whole) == whole
    assert len(flat_whole) == 2 and flat_whole[-1] == whole[1] and list(flat_whole[1:]) == whole[1:]
    assert flat_whole.start_indices == [0, 2] and flat_whole.token_ids[0] == 5
    with pytest.raises(IndexError):
        flat_whole[2]


def test_a_beam_search_that_fails_or_finds_less_than_n() -> None:
    desk = Desk()

    def open_search(name: str) -> ActiveRequest:
        return desk.open(name, detokenize=False, n=3, use_beam_search=True, temperature=0.0)

    request = open_search("few")
    assert len(request.submits) == 1
    beams = [Beam([4, 5], -1.0, FinishReason.LENGTH), Beam([4, 6], -2.0, FinishReason.STOP, 6)]
    assert desk.step(request, [], beams=beams, finish_reason=FinishReason.STOP) == [request]
    output = taken(request)
    assert output.finished and [
        (one.index, one.token_ids, one.finish_reason, one.stop_reason) for one in output.outputs
    ] == [
        (0, [4, 5], "length", None),
        (1, [4, 6], "stop", 6),
    ]
    request = open_search("bad")
    desk.step(request, [], error="it broke", finish_reason=FinishReason.ERROR)
    output = taken(request)
    assert output.finished and output.error == "it broke"
    assert [one.finish_reason for one in output.outputs] == ["error"] * 3
    request = open_search("gone")
    assert desk.outputs.abort([request]) == [request.submits[0].request_id]
    assert request.finished and desk.outputs.num_unfinished == 0
