"""Traces and budgets of thoughts in an engine over the simulated device, and masks of several constraints together."""

from __future__ import annotations

import re

import numpy as np
import pytest

from octavo.core.messages import Submit
from octavo.core.params import SamplingParams
from octavo.core.step import TokenMasks
from octavo.core.structured import StructuredOutputsParams, Thinking
from octavo.engine.constraints import intersect
from octavo.engine.engine_core import EngineCore
from octavo.errors import InvalidRequest
from octavo.structured.constraint import StructuredOutputs
from octavo.structured.forced import ForcedTokens
from tests.simulation import END, expected_output, make_engine, run
from tests.unit.structured.small import small_vocabulary, text_of

END_OF_THOUGHTS = small_vocabulary().ids_of[b"</t>"][0]
TAGS = Thinking({"<t>": ["</t>"]}, starts_inside=True)


def engine_with(**options: object) -> EngineCore:
    forced = ForcedTokens(small_vocabulary, small_vocabulary().size)
    return make_engine(structured=StructuredOutputs(small_vocabulary), forced=forced, **options)  # type: ignore[arg-type]


def ask(engine: EngineCore, name: str, prompt: list[int], max_tokens: int = 24, **fields: object) -> None:
    params = SamplingParams(max_tokens=max_tokens, **fields)  # type: ignore[arg-type]
    engine.add(Submit(name, prompt, params, 0.0, eos_token_ids=[END]))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("options", [{}, {"budget": 16}, {"num_slabs": 8, "max_rows": 12, "budget": 20}])
def test_a_trace_is_the_output_and_neighbours_are_unchanged(depth: int, options: dict[str, object]) -> None:
    engine = engine_with(depth=depth, **options)
    prompts = [[*range(1, 31), *[i + 5] * (i * 7)] for i in range(4)]
    traces = [[(7 * i + k) % 48 + 1 for k in range(12)] for i in range(4)]
    for i in (0, 2):
        ask(engine, str(i), prompts[i], 12, trace_decode_token_ids=traces[i], ignore_eos=True)
    for i in (1, 3):
        ask(engine, str(i), prompts[i])
    outputs = run(engine)
    assert [outputs["0"], outputs["2"]] == [traces[0], traces[2]]
    assert [outputs[i] for i in "13"] == [expected_output(prompts[int(i)], 24) for i in "13"]
    ask(engine, "last", [1], 1)
    run(engine)
    assert not engine._constraint, "nothing is kept of requests that have ended"


def test_after_a_short_trace_the_model_goes_on() -> None:
    engine = engine_with()
    ask(engine, "a", [1, 2, 3], 10, trace_decode_token_ids=[9, 8])
    output = run(engine)["a"]
    assert output[:2] == [9, 8]
    assert output[2:] == expected_output([1, 2, 3, 9, 8], 8)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("budget", [0, 1, 5])
def test_thoughts_end_when_their_budget_is_used_up(depth: int, budget: int) -> None:
    engine = engine_with(depth=depth)
    prompt = next([i, 2, 3] for i in range(1, 40) if not {END, END_OF_THOUGHTS} & {*expected_output([i, 2, 3], 8)})
    ask(engine, "a", prompt, 30, thinking_token_budget=budget, thinking=TAGS, ignore_eos=True)
    free = expected_output(prompt, 8)[:budget]
    output = run(engine)["a"]
    text = text_of(output)
    assert output[:budget] == free
    assert text.startswith(text_of(free) + "</t>")


def test_thoughts_that_end_by_themselves_and_outputs_without_any_are_left_alone() -> None:
    engine = engine_with()
    ask(engine, "long", [1, 2, 3], 10, thinking_token_budget=100, thinking=TAGS, ignore_eos=True)
    ask(engine, "none", [4, 5, 6], 10, thinking_token_budget=0, thinking=Thinking({"<t>": ["</t>"]}))
    outputs = run(engine)
    assert outputs["long"] == expected_output([1, 2, 3], 10)
    assert outputs["none"] == expected_output([4, 5, 6], 10)


def test_a_budget_and_a_form_together() -> None:
    engine = engine_with()
    form = StructuredOutputsParams(regex="[a-c]{4}", thinking=TAGS)
    ask(engine, "a", [1, 2, 3], 30, thinking_token_budget=3, thinking=TAGS, structured_outputs=form)
    text = text_of([token_id for token_id in run(engine)["a"] if token_id != END])
    thoughts, end, answer = text.partition("</t>")
    assert end and thoughts
    assert re.fullmatch("[a-c]{4}", answer)


def test_a_budget_without_tags_is_refused_and_leaves_nothing() -> None:
    engine = engine_with()
    with pytest.raises(InvalidRequest, match="thinking_token_budget needs thinking"):
        ask(engine, "a", [1], thinking_token_budget=3)
    engine.step()  # the end that nobody was told of
    ask(engine, "a", [1, 2], 3)
    assert run(engine)["a"] == expected_output([1, 2], 3)


def test_masks_of_several_are_what_all_allow() -> None:
    def masks(*rows: tuple[int, int]) -> TokenMasks:
        return TokenMasks([place for place, _ in rows], np.array([[bits] for _, bits in rows], dtype=np.int32))

    both = intersect([masks((0, 0b1100), (3, 0b1)), masks((0, 0b0110), (1, 0b1000), (3, 0b10))])
    assert both.places == [0, 1, 3]
    assert both.bits[:, 0].tolist() == [0b0100, 0b1000, 0b10], "where nothing is left, who spoke last is right"
