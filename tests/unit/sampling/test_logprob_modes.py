"""What log-probabilities are: raw or processed, normalised or not, of the likeliest or of named tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.config.engine_config import SamplingConfig
from octavo.core.outputs import TokenLogprobs
from octavo.core.params import LOGPROBS_MODES, SamplingParams
from octavo.ops import dispatch
from octavo.ops import sampling as ops
from octavo.sampling.sampler import Sampler, SamplerOutput
from tests.ops import interpreter
from tests.ops.on_device import implementation_of

VOCAB_SIZE = 150
PROMPT, OUTPUT = [1, 1, 5], [5, 9]
OPS = ("apply_penalties", "argmax", "choose_tokens", "gather_logprobs", "mask_truncated", "row_uniform", "sample")


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As an engine on a GPU chooses them: then one op chooses tokens for all rows."""
    if "triton" not in dispatch.present()["sample"]:
        pytest.skip("no Triton here")
    interpreter.prepare()
    monkeypatch.setattr(dispatch, "is_specialised", lambda op: op in OPS)
    for op in OPS:
        monkeypatch.setattr(dispatch.bound, op, implementation_of(op, "triton"))
    with np.errstate(all="ignore"):
        yield


def found(output: SamplerOutput) -> dict[int, TokenLogprobs]:
    return {i: row for block in output.logprobs for i, row in block.rows()}


def run(sampler: Sampler, logits: Tensor, rows: list[int]) -> SamplerOutput:
    return sampler.sample(logits.clone(), torch.tensor(rows), rows, torch.full((len(rows),), len(OUTPUT)))


def values(logits: np.ndarray, mode: str, fields: dict[str, Any]) -> np.ndarray:
    """Of all tokens, by the definitions, in float64."""
    out = logits.astype(np.float64)
    if mode.startswith("processed"):
        penalty = fields.get("repetition_penalty", 1.0)
        for token_id in {*PROMPT, *OUTPUT}:
            out[token_id] *= 1 / penalty if out[token_id] > 0 else penalty
        for token_id, bias in fields.get("logit_bias", {}).items():
            out[token_id] += bias
        if fields["temperature"]:
            out /= fields["temperature"]
            kept = np.exp(out - out.max()) >= fields.get("min_p", 0.0)
            if fields.get("top_k"):
                kept &= out >= np.sort(out)[-fields["top_k"]]
            weights = np.where(kept, np.exp(out - out.max()), 0.0)
            order = np.argsort(-out, kind="stable")
            before = np.cumsum(weights[order]) - weights[order]
            kept[order[before >= fields.get("top_p", 1.0) * weights.sum()]] = False
            out[~kept] = -np.inf
    return out if mode.endswith("logits") else out - np.log(np.exp(out - out.max()).sum()) - out.max()


FIELDS: list[dict[str, Any]] = [
    {"temperature": 0.0, "repetition_penalty": 1.7},
    {"temperature": 0.6, "top_k": 9, "repetition_penalty": 1.7},
    {"temperature": 1.4, "top_p": 0.7, "logit_bias": {3: 4.0}},
    {"temperature": 0.9, "min_p": 0.2},
    {"temperature": 1.1},
]


@pytest.mark.parametrize("everybody", [True, False])
@pytest.mark.parametrize("mode", LOGPROBS_MODES)
def test_each_mode_by_its_definition(mode: Any, everybody: bool) -> None:
    """Of rows of every kind in one batch, beside neighbours of other modes."""
    torch.manual_seed(21)
    logits = torch.randn(len(FIELDS) * 2, VOCAB_SIZE) * 2
    sampler = Sampler(16, VOCAB_SIZE, "cpu")
    others = [mode] if everybody else [None, "raw_logprobs", "processed_logits", "raw_logits"]
    for row, fields in enumerate(FIELDS + FIELDS):
        own = mode if row < len(FIELDS) else others[row % len(others)]
        params = SamplingParams(**fields, logprobs=12 if own else None, logprobs_mode=own)
        sampler.add_row(row, params, row, PROMPT, OUTPUT, frozenset())
    output = run(sampler, logits, list(range(len(logits))))
    rows = found(output)
    assert not output.nan.any()
    for row, fields in enumerate(FIELDS):
        want = values(logits[row].numpy(), mode, fields)
        got = rows[row]
        assert got.token_ids[0] == int(output.token_ids[row]) and len(got.token_ids) == 13
        assert np.isfinite(got.logprobs[0])
        np.testing.assert_allclose(got.logprobs, want[got.token_ids], atol=2e-5)
        assert got.ranks == [1 + int((want > want[token_id]).sum()) for token_id in got.token_ids]
        assert got.logprobs[1:] == sorted(got.logprobs[1:], reverse=True)
        assert got.logprobs[1] == pytest.approx(want.max(), abs=2e-5)
    if mode.startswith("processed"):  # the ninth likeliest is the last that top_k 9 keeps
        assert np.isfinite(rows[1].logprobs[1:10]).all() and np.isneginf(rows[1].logprobs[10:]).all()


def test_what_is_drawn_does_not_depend_on_the_mode() -> None:
    torch.manual_seed(22)
    logits = torch.randn(len(FIELDS), VOCAB_SIZE) * 2
    drawn = []
    for mode in (None, *LOGPROBS_MODES):
        sampler = Sampler(8, VOCAB_SIZE, "cpu")
        for row, fields in enumerate(FIELDS):
            params = SamplingParams(**fields, logprobs=2 if mode else None, logprobs_mode=mode)
            sampler.add_row(row, params, row, PROMPT, OUTPUT, frozenset())
        drawn.append(run(sampler, logits, list(range(len(FIELDS)))).token_ids.tolist())
    assert all(tokens == drawn[0] for tokens in drawn)


def test_the_engines_mode_holds_where_a_request_does_not_say() -> None:
    logits = torch.randn(2, VOCAB_SIZE)
    sampler = Sampler(4, VOCAB_SIZE, "cpu", config=SamplingConfig(logprobs_mode="raw_logits"))
    for row, mode in enumerate((None, "raw_logprobs")):
        params = SamplingParams(temperature=0.0, logprobs=0, logprobs_mode=mode)  # type: ignore[arg-type]
        sampler.add_row(row, params, row, [1], [], frozenset())
    rows = found(run(sampler, logits, [0, 1]))
    assert rows[0].logprobs == [pytest.approx(float(logits[0].max()))]
    assert rows[1].logprobs == [pytest.approx(float(logits[1].log_softmax(-1).max()), abs=1e-5)]


@pytest.mark.parametrize("mode", LOGPROBS_MODES)
def test_named_tokens_with_exact_ranks(mode: Any) -> None:
    """Alone, beside the likeliest, for some rows more than for others; equal logits share a rank."""
    torch.manual_seed(23)
    logits = (torch.randn(4, VOCAB_SIZE) * 2).round()
    asked: list[tuple[int | None, list[int] | None]] = [(None, [7, 3, 149]), (2, [5]), (3, None), (None, [11])]
    sampler = Sampler(8, VOCAB_SIZE, "cpu")
    fields = {"temperature": 0.7, "top_k": 20}
    for row, (num_top, token_ids) in enumerate(asked):
        params = SamplingParams(**fields, logprobs=num_top, logprob_token_ids=token_ids, logprobs_mode=mode)  # type: ignore[arg-type]
        sampler.add_row(row, params, row, PROMPT, OUTPUT, frozenset())
    output = run(sampler, logits, [0, 1, 2, 3])
    rows = found(output)
    for row, (num_top, token_ids) in enumerate(asked):
        want, got = values(logits[row].numpy(), mode, fields), rows[row]
        assert got.token_ids[0] == int(output.token_ids[row])
        assert got.token_ids[1 + (num_top or 0) :] == (token_ids or [])
        np.testing.assert_allclose(got.logprobs, want[got.token_ids], atol=2e-5)
        assert got.ranks == [1 + int((want > want[token_id]).sum()) for token_id in got.token_ids]


def test_the_whole_vocabulary_processed() -> None:
    logits = torch.randn(1, VOCAB_SIZE)
    sampler = Sampler(2, VOCAB_SIZE, "cpu")
    params = SamplingParams(top_k=3, logprobs=-1, logprobs_mode="processed_logprobs")
    sampler.add_row(0, params, 0, [1], [], frozenset())
    row = found(run(sampler, logits, [0]))[0]
    assert sorted(row.token_ids[1:]) == list(range(VOCAB_SIZE))
    assert np.isneginf(row.logprobs[4:]).all() and sum(np.exp(row.logprobs[1:4])) == pytest.approx(1.0)


def test_beside_the_fused_choice_of_tokens(triton: None) -> None:
    torch.manual_seed(24)
    logits = torch.randn(len(FIELDS) + 1, VOCAB_SIZE) * 2
    sampler = Sampler(8, VOCAB_SIZE, "cpu")
    for row, fields in enumerate(FIELDS):
        params = SamplingParams(**fields, logprobs=2, logprobs_mode="processed_logprobs", logprob_token_ids=[8])
        sampler.add_row(row, params, row, PROMPT, OUTPUT, frozenset())
    sampler.add_row(5, SamplingParams(top_k=3), 5, PROMPT, OUTPUT, frozenset())
    output = run(sampler, logits, [0, 1, 2, 3, 4, 5])
    rows = found(output)
    assert sorted(rows) == [0, 1, 2, 3, 4] and not output.nan.any()
    for row, fields in enumerate(FIELDS):
        want, got = values(logits[row].numpy(), "processed_logprobs", fields), rows[row]
        assert np.isfinite(got.logprobs[0]) and got.token_ids[0] == int(output.token_ids[row])
        np.testing.assert_allclose(got.logprobs, want[got.token_ids], atol=2e-5)
        assert got.ranks == [1 + int((want > want[token_id]).sum()) for token_id in got.token_ids]


def test_raw_values_need_no_truncation(triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "mask_truncated", lambda *args: pytest.fail("ran"))
    sampler = Sampler(2, VOCAB_SIZE, "cpu")
    sampler.add_row(0, SamplingParams(top_k=3, logprobs=2), 0, [1], [], frozenset())
    assert found(run(sampler, torch.randn(1, VOCAB_SIZE), [0]))
