"""Sampling features through the whole engine, with a real model: what is asked holds at any depth, with preemption, in
a batch with others, whose tokens stay what they were."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from octavo.config.options import Options
from octavo.core.messages import Submit
from octavo.core.outputs import TokenLogprobs
from octavo.core.params import SamplingParams
from octavo.engine.assemble import build_engine
from octavo.engine.configure import configure
from octavo.engine.engine_core import EngineCore
from tests.models.harness import randomise, save
from tests.models.test_logits import VOCAB, config_of

PROMPTS = [[(7 * i + k) % VOCAB for i in range(9 + 5 * k)] for k in range(4)]


@dataclass
class Checkpoint:
    folder: Path
    model: Any

    def logits(self, tokens: list[int]) -> np.ndarray:
        """At each position, by transformers, in float64."""
        with torch.inference_mode():
            return self.model(torch.tensor([tokens])).logits[0].double().numpy()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    torch.manual_seed(5)
    model = transformers.LlamaForCausalLM(config_of("llama")).eval()
    randomise(model, seed=5)
    return Checkpoint(save(model, tmp_path_factory.mktemp("llama")), model)


def make_engine(checkpoint: Checkpoint, depth: int = 1, **options: Any) -> EngineCore:
    settings: dict[str, Any] = {"num_gpu_blocks_override": 200, "max_num_batched_tokens": 64, **options}
    configured = configure(
        Options(
            model=str(checkpoint.folder), dtype="float32", max_model_len=128, threads=1, skip_tokenizer_init=True,
            max_num_seqs=16, async_scheduling=depth == 2, **settings,
        )
    )  # fmt: skip
    return build_engine(configured.config, configured.platform)


@dataclass
class Outcome:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    error: str | None = None


def run(
    engine: EngineCore, requests: dict[str, tuple[list[int], SamplingParams]], preempt_every: int = 0
) -> dict[str, Outcome]:
    """What came of requests that came together; everything starts over every so many steps."""
    outcomes = {name: Outcome() for name in requests}
    for name, (prompt, params) in requests.items():
        engine.add(Submit(name, prompt, params, 0.0, seed=sum(prompt)))
    num_steps = 0
    while engine.has_work():
        num_steps += 1
        assert num_steps < 2000
        for delta in engine.step().deltas:
            outcome = outcomes[delta.request_id]
            outcome.token_ids += delta.token_ids
            outcome.logprobs += delta.logprobs or []
            outcome.error = delta.error
        if preempt_every and num_steps % preempt_every == 0:
            engine.scheduler.preempt_all()
    assert engine.scheduler.cache.usage == 0
    return outcomes


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 14, "ignore_eos": True, **fields})


def greedy(checkpoint: Checkpoint, prompt: list[int], num_tokens: int, edit: Any) -> list[int]:
    """By transformers, with `edit(output, logits)` before each choice."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        logits = checkpoint.logits(tokens)[-1].copy()
        edit(tokens[len(prompt) :], logits)
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


WAYS = [(1, 0), (2, 0), (1, 3), (2, 4)]  # depth; steps between two times that everything starts over


@pytest.mark.parametrize(("depth", "preempt_every"), WAYS)
def test_biases_allowed_tokens_and_bad_words(checkpoint: Checkpoint, depth: int, preempt_every: int) -> None:
    """The bad word is three tokens in a row of what the model says by itself: its beginning stays."""
    plain = greedy(checkpoint, PROMPTS[0], 14, lambda output, logits: None)
    word = plain[3:6]
    allowed = [4, 8, 15, 16, 23, 42]

    def ban(output: list[int], logits: np.ndarray) -> None:
        if output[-2:] == word[:2]:
            logits[word[2]] = -np.inf

    def allow(output: list[int], logits: np.ndarray) -> None:
        logits[[i for i in range(VOCAB) if i not in allowed]] = -np.inf

    def bias(output: list[int], logits: np.ndarray) -> None:
        logits[17] += 2.5

    wanted = {
        "plain": plain,
        "word": greedy(checkpoint, PROMPTS[0], 14, ban),
        "allowed": greedy(checkpoint, PROMPTS[1], 14, allow),
        "bias": greedy(checkpoint, PROMPTS[2], 14, bias),
        "forced": [33] * 14,
    }
    outcomes = run(
        make_engine(checkpoint, depth),
        {
            "plain": (PROMPTS[0], params()),
            "word": (PROMPTS[0], params(bad_words_token_ids=[word])),
            "allowed": (PROMPTS[1], params(allowed_token_ids=allowed)),
            "bias": (PROMPTS[2], params(logit_bias={17: 2.5})),
            "forced": (PROMPTS[3], params(logit_bias={33: 100.0})),
        },
        preempt_every,
    )
    assert {name: outcome.token_ids for name, outcome in outcomes.items()} == wanted
    assert wanted["word"][:5] == plain[:5] and wanted["word"][5] != word[2]
    assert 17 in wanted["bias"]


@pytest.mark.parametrize(("depth", "preempt_every"), WAYS)
def test_modes_and_named_tokens_equal_transformers(checkpoint: Checkpoint, depth: int, preempt_every: int) -> None:
    """One request of each mode, drawn with a temperature and top_k; the engine's own mode for who does not say."""
    fields: dict[str, Any] = {"temperature": 0.7, "top_k": 6, "logprobs": 4, "logprob_token_ids": [3, 50]}
    modes = ("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits")
    requests = {mode: (PROMPTS[i], params(**fields, logprobs_mode=mode)) for i, mode in enumerate(modes)}
    requests["default"] = PROMPTS[0], params(**fields)
    requests["named"] = PROMPTS[1], params(temperature=0.7, logprob_token_ids=[9])
    outcomes = run(make_engine(checkpoint, depth, logprobs_mode="processed_logits"), requests, preempt_every)
    for name, (prompt, own) in requests.items():
        mode = own.logprobs_mode or "processed_logits"
        outcome = outcomes[name]
        logits = checkpoint.logits(prompt + outcome.token_ids)
        assert len(outcome.logprobs) == len(outcome.token_ids) == 14
        for position, (token_id, found) in enumerate(zip(outcome.token_ids, outcome.logprobs, strict=True)):
            want = logits[len(prompt) + position - 1]
            if mode.startswith("processed"):
                want = want / 0.7
                if own.top_k:
                    want = np.where(want >= np.sort(want)[-6], want, -np.inf)
            ranks = [1 + int((want > want[i]).sum()) for i in found.token_ids]
            if mode.endswith("logprobs"):
                want = want - np.log(np.exp(want - want.max()).sum()) - want.max()
            named = own.logprob_token_ids or []
            assert found.token_ids[0] == token_id and found.token_ids[-len(named) :] == named
            assert len(found.token_ids) == 1 + (own.logprobs or 0) + len(named)
            np.testing.assert_allclose(found.logprobs, want[found.token_ids], atol=1e-4)
            assert found.ranks == ranks


def test_who_leaves_nothing_to_sample_ends_alone(checkpoint: Checkpoint) -> None:
    expected = run(make_engine(checkpoint), {"neighbour": (PROMPTS[0], params())})["neighbour"].token_ids
    outcomes = run(
        make_engine(checkpoint),
        {
            "neighbour": (PROMPTS[0], params()),
            "stuck": (PROMPTS[1], params(allowed_token_ids=[5, 6], bad_words_token_ids=[[5], [6]])),
        },
    )
    assert outcomes["neighbour"].token_ids == expected and outcomes["neighbour"].error is None
    assert outcomes["stuck"].token_ids == [] and "no token is left" in (outcomes["stuck"].error or "")
