"""Outputs that repeat themselves are found, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.messages import Submit
from octavo.core.params import RepetitionDetection, SamplingParams
from octavo.core.request import FinishReason
from octavo.scheduler.stopping import ends_in_repetition
from tests.simulation import make_engine, next_token


def by_definition(output: list[int], detection: RepetitionDetection) -> bool:
    for size in range(max(1, detection.min_pattern_size), detection.max_pattern_size + 1):
        whole = size * detection.min_count
        if whole <= len(output) and output[-whole:] == output[-size:] * detection.min_count:
            return True
    return False


@given(
    output=st.lists(st.integers(0, 2), min_size=1, max_size=24),
    prompt=st.lists(st.integers(0, 2), max_size=6),
    sizes=st.tuples(st.integers(0, 5), st.integers(1, 5)).filter(lambda pair: pair[0] <= pair[1]),
    count=st.integers(2, 4),
)
def test_as_defined(output: list[int], prompt: list[int], sizes: tuple[int, int], count: int) -> None:
    detection = RepetitionDetection(sizes[1], sizes[0], count)
    assert ends_in_repetition(prompt + output, len(output), detection) == by_definition(output, detection)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("min_tokens", [0, 9])
def test_a_request_ends_at_its_first_repetition(depth: int, min_tokens: int) -> None:
    prompt, detection = [3, 4], RepetitionDetection(max_pattern_size=8, min_count=2)
    expected: list[int] = []
    while len(expected) < 200:  # what the simulated device says, until it repeats itself
        expected.append(next_token(prompt + expected))
        if len(expected) >= min_tokens and by_definition(expected, detection):
            break
    assert len(expected) < 200
    engine = make_engine(depth=depth)
    params = SamplingParams(
        max_tokens=200, ignore_eos=True, repetition_detection=detection, min_tokens=min_tokens, temperature=0.5
    )
    engine.add(Submit("a", prompt, params, 0.0))
    engine.add(Submit("b", prompt, SamplingParams(max_tokens=len(expected) + 5, ignore_eos=True), 0.0))
    outputs: dict[str, list[int]] = {"a": [], "b": []}
    ends = {}
    while engine.has_work():
        for delta in engine.step().deltas:
            outputs[delta.request_id] += delta.token_ids
            if delta.finish_reason is not None:
                ends[delta.request_id] = (delta.finish_reason, delta.stop_reason)
    assert outputs["a"] == expected
    assert ends == {"a": (FinishReason.REPETITION, "repetition_detected"), "b": (FinishReason.LENGTH, None)}
    assert len(outputs["b"]) == len(expected) + 5
