"""Structured outputs in an engine over the simulated device: whatever happens to a request, its output is the one that
it has alone, and has its form."""

from __future__ import annotations

import re
import threading

import numpy as np
import pytest

from octavo.core.messages import Delta, Submit
from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.core.request import FinishReason
from octavo.core.structured import StructuredOutputsParams, Thinking
from octavo.engine.engine_core import EngineCore
from octavo.errors import InvalidRequest
from octavo.structured.constraint import StructuredOutputs
from octavo.structured.grammar import MatcherFailed
from tests.simulation import END, check_nothing_leaked, expected_output, make_engine, run, submit
from tests.unit.structured.small import fits, small_vocabulary, text_of

FORMS = [r"[a-c]{3,9}-[0-9]{2}", r"(ab|abc)*d", r"\{\"a\":[0-9]{1,3}\}", None, r"[0-9a-f]{20}", None]


def engine_with(**options: object) -> EngineCore:
    return make_engine(structured=StructuredOutputs(small_vocabulary), **options)  # type: ignore[arg-type]


def form(pattern: str | None, **options: object) -> StructuredOutputsParams | None:
    return None if pattern is None else StructuredOutputsParams(regex=pattern, **options)  # type: ignore[arg-type]


def until_compiled(engine: EngineCore) -> EngineCore:
    for pending in engine._constraint._pending.values():  # type: ignore[union-attr]
        pending.future.exception(20)
    return engine


def is_idle(engine: EngineCore) -> bool:
    """After another request's first step, nothing of those before it is held."""
    submit(engine, "last", [1], 1)
    run(engine)
    return not engine._constraint


def alone(prompt: list[int], pattern: str | None, max_tokens: int) -> list[int]:
    engine = engine_with()
    submit(engine, "x", prompt, max_tokens, structured=form(pattern))
    return run(engine)["x"]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"budget": 16},  # prompts in chunks
        {"num_slabs": 11, "max_rows": 12},  # too little room: preempted and resumed
        {"num_slabs": 8, "max_rows": 12, "budget": 20, "caching": False},
        {"max_rows": 2},
    ],
    ids=["plenty", "chunks", "preemption", "all at once", "queue"],
)
def test_outputs_have_their_form_whatever_happens(depth: int, options: dict[str, object]) -> None:
    prompts = [[*range(1, 31), *[i + 5] * (i * 7)] for i in range(6)]
    engine = engine_with(depth=depth, **options)
    for i, (prompt, pattern) in enumerate(zip(prompts, FORMS, strict=True)):
        submit(engine, str(i), prompt, 24, structured=form(pattern))
    outputs = run(until_compiled(engine))
    preempted = engine.scheduler.config.max_num_seqs == 12
    for i, (prompt, pattern) in enumerate(zip(prompts, FORMS, strict=True)):
        if pattern is None:
            assert outputs[str(i)] == expected_output(prompt, 24)
        else:
            assert outputs[str(i)] == alone(prompt, pattern, 24)
            assert fits(pattern, outputs[str(i)], 24), text_of(outputs[str(i)])
    if preempted:
        plans = engine.executor.plans  # type: ignore[attr-defined]
        assert sum(len(plan.new_rows) for plan in plans) > len(prompts), "nobody was preempted"
    assert is_idle(engine)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_failed_step_leaves_grammars_as_they_were(depth: int) -> None:
    """Results of dropped steps are never followed: nobody else's form breaks."""
    prompts = [[i + 1] * (10 + i) for i in range(6)]
    guilty = prompts[5]
    raised = engine_with(depth=depth, raises_on=lambda tokens: tokens[:15] == guilty and len(tokens) > 18)
    not_finite = engine_with(depth=depth, nan_on=lambda tokens: tokens[:15] == guilty and len(tokens) > 18)
    for engine in (raised, not_finite):
        for i, prompt in enumerate(prompts):
            submit(engine, str(i), prompt, 20, structured=form(r"[a-f]{30}" if i == 5 else FORMS[i % 3]))
        outputs = run(engine)
        for i in range(5):
            assert outputs[str(i)] == alone(prompts[i], FORMS[i % 3], 20)
        assert 3 <= len(outputs["5"]) < 20


def test_batches_without_grammars_run_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_with()

    def never(*_: object) -> None:
        raise AssertionError("was called")

    for name in ("masks", "refusals", "wait"):
        monkeypatch.setattr(engine._constraint, name, never)
    submit(engine, "a", [1, 2, 3], 10)
    assert run(engine)["a"] == expected_output([1, 2, 3], 10)
    assert not engine._constraint and engine.executor.masks == [None] * 10  # type: ignore[union-attr,attr-defined]


def test_masks_are_of_their_rows_alone() -> None:
    engine = engine_with()
    for i in range(5):
        submit(engine, str(i), [i + 1] * 4, 6, structured=form("[a-c]{9}") if i in (1, 3) else None)
    run(engine)
    masks = [mask for mask in engine.executor.masks if mask is not None]  # type: ignore[attr-defined]
    assert masks and all(mask.places == sorted(mask.places) and len(mask.places) <= 2 for mask in masks)
    assert all(mask.bits.dtype == np.int32 and mask.bits.shape == (len(mask.places), 2) for mask in masks)


def test_a_request_waits_for_its_grammar_and_nobody_for_it() -> None:
    may_go = threading.Event()

    def slow_vocabulary():
        assert may_go.wait(20)
        return small_vocabulary()

    engine = make_engine(structured=StructuredOutputs(slow_vocabulary))
    submit(engine, "formed", [1, 2], 8, structured=form("[a-c]{5}"))
    submit(engine, "free", [3, 4], 8)
    outputs: dict[str, list[int]] = {}

    def step() -> None:
        for delta in engine.step().deltas:
            outputs.setdefault(delta.request_id, []).extend(delta.token_ids)

    while "free" in engine.scheduler.requests:
        step()
    assert outputs == {"free": expected_output([3, 4], 8)} and engine.has_work()
    step()  # has nothing to do, and says so at once
    may_go.set()
    while engine.has_work():
        step()
    assert text_of(outputs["formed"])[:5].strip("abc") == "" and outputs["formed"][-1] == END
    check_nothing_leaked(engine)


def test_equal_forms_are_compiled_once() -> None:
    opened = []

    def vocabulary():
        opened.append(1)
        return small_vocabulary()

    structured = StructuredOutputs(vocabulary)
    engine = make_engine(structured=structured)
    for i in range(4):  # as the n completions of one request are
        submit(engine, str(i), [1, 2, 3, i + 4], 12, structured=form("[a-f]{8}", source=f"field{i}"))
    outputs = run(engine)
    assert len({tuple(tokens) for tokens in outputs.values()}) == 4
    assert all(fits("[a-f]{8}", tokens, 12) for tokens in outputs.values())
    assert len(structured._compiler._cache) == 1 and opened == [1]


def ended(engine: EngineCore) -> dict[str, Delta]:
    last = {}
    while engine.has_work():
        for delta in engine.step().deltas:
            if delta.finish_reason is not None:
                assert delta.request_id not in last
                last[delta.request_id] = delta
    check_nothing_leaked(engine)
    return last


@pytest.mark.parametrize("depth", [1, 2])
def test_a_poisonous_grammar_ends_its_own_request(depth: int) -> None:
    engine = engine_with(depth=depth)
    for i in range(8):
        submit(engine, f"free{i}", [i + 1] * 5, 15)
        submit(engine, f"formed{i}", [i + 1] * 5, 15, structured=form("[a-e]{9}[0-9]"))
    submit(engine, "malformed", [1], 15, structured=form("([a-z"))
    submit(engine, "impossible", [1], 15, structured=StructuredOutputsParams(json={"enum": []}))
    submit(
        engine,
        "unknown",
        [1],
        15,
        structured=StructuredOutputsParams(json={"not": {}}, source="response_format", backend="guidance"),
    )
    submit(engine, "beyond", [1], 15, structured=form("[XYZ]+"))
    last = ended(engine)
    for name, words in {
        "malformed": "structured_outputs.regex cannot be compiled",
        "impossible": "structured_outputs.json cannot be compiled",
        "unknown": "'not'",
        "beyond": "no text has this form",
    }.items():
        delta = last.pop(name)
        assert delta.finish_reason == FinishReason.ERROR and delta.error_type == "InvalidRequest"
        assert words in (delta.error or ""), delta.error
        assert delta.error_field == {"unknown": "response_format", "impossible": "structured_outputs.json"}.get(
            name, "structured_outputs.regex"
        )
    assert len(last) == 16 and all(delta.error is None for delta in last.values())


@pytest.mark.parametrize("depth", [1, 2])
def test_a_matcher_that_fails_ends_its_own_request(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that is met in the middle of an output, as of a regex that grows too large."""
    engine = engine_with(depth=depth)
    submit(engine, "good", [1, 2], 15, structured=form("[a-e]{12}"))
    submit(engine, "bad", [1, 2], 15, structured=form("[a-d]{12}"))
    until_compiled(engine).step()
    matcher = engine._constraint._live["bad"].follower.matcher  # type: ignore[union-attr]

    def check() -> None:
        raise MatcherFailed("it takes too much to follow")

    monkeypatch.setattr(matcher, "check", check, raising=False)
    last = ended(engine)
    assert last["bad"].error == "structured_outputs.regex: it takes too much to follow"
    assert last["bad"].error_type is None and last["good"].error is None


def ask(engine: EngineCore, pattern: str, **fields: object) -> Delta:
    params = SamplingParams(
        structured_outputs=form(pattern), output_kind=RequestOutputKind.FINAL_ONLY, **{"max_tokens": 20, **fields}
    )  # type: ignore[arg-type]
    engine.add(Submit("x", [1, 2, 3], params, 0.0, eos_token_ids=[END]))
    return ended(engine)["x"]


def test_how_outputs_end() -> None:
    whole = ask(engine_with(), "[a-c]{3}")
    assert whole.finish_reason == FinishReason.STOP and whole.token_ids[-1] == END
    open_end = r"[a-c]{1,40}"
    assert END in ask(engine_with(), open_end, max_tokens=40).token_ids
    ignoring = ask(engine_with(), open_end, ignore_eos=True, max_tokens=100)
    assert len(text_of(ignoring.token_ids)) == 40 and ignoring.finish_reason == FinishReason.STOP  # as far as it goes
    early = ask(engine_with(), "[a-c]{3}", min_tokens=8)
    assert re.search(r"regex: it is complete after [123] tokens, but min_tokens is 8$", early.error or "")


def test_min_tokens_and_stop_tokens_that_are_all_the_grammar_allows() -> None:
    a = small_vocabulary().ids_of[b"u"][0]
    stuck = ask(engine_with(), "bu", min_tokens=4, stop_token_ids=[a])
    assert "min_tokens is 4" in (stuck.error or "")
    assert ask(engine_with(), "bu", stop_token_ids=[a]).stop_reason == a


def test_a_model_without_an_end_is_refused() -> None:
    engine = engine_with()
    with pytest.raises(InvalidRequest, match="a token that ends the output") as refused:
        engine.add(Submit("x", [1], SamplingParams(structured_outputs=form("a")), 0.0))
    assert refused.value.field == "structured_outputs.regex" and not engine.has_work() and not engine._constraint


def test_aborted_requests_leave_nothing() -> None:
    engine = engine_with()
    for i in range(4):
        submit(engine, str(i), [1, 2, i + 1], 30, structured=form("[a-e]{40}"))
    engine.abort(["0"])  # while its grammar is compiled
    for _ in range(6):
        engine.step()
    engine.abort(["1", "2", "3"])
    while engine.has_work():
        engine.step()
    check_nothing_leaked(engine)
    assert is_idle(engine)


TAGS = {"<t>": ["</t>"]}


def thought(engine: EngineCore, thinking: Thinking, pattern: str = "[0-9]{4}", max_tokens: int = 400) -> str:
    submit(engine, "x", [7, 8, 9], max_tokens, structured=form(pattern, thinking=thinking))
    return text_of(run(engine)["x"])


@pytest.mark.parametrize("depth", [1, 2])
def test_the_grammar_begins_when_the_thoughts_end(depth: int) -> None:
    text = thought(engine_with(depth=depth), Thinking(TAGS, starts_inside=True))
    thoughts, end, answer = text.partition("</t>")
    assert thoughts and end and answer.isdigit() and len(answer) == 4
    masked = [mask is not None for mask in engine_with().executor.masks]  # type: ignore[attr-defined]
    assert not any(masked)


def test_thoughts_that_the_model_may_open_itself() -> None:
    """From the first token on: either an opening tag, or what has the form."""
    seen = set()
    for i in range(40):
        engine = engine_with()
        submit(engine, "x", [i + 1, 3], 300, structured=form("[0-1]{2}", thinking=Thinking(TAGS)))
        text = text_of(run(engine)["x"])
        head, _, answer = text.rpartition("</t>")
        assert set(answer) <= {"0", "1"} and len(answer) == 2 and (not head or head.startswith("<t>")), text
        seen.add(bool(head))
    assert seen == {True, False}
