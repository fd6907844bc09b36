"""batch_invariant: tokens and log-probabilities are the same to the last bit, however a request is computed.

Each of NUM_BATCHINGS is an engine of its own: random chunks, cache (off, on, warm, too small for all), steps in flight,
neighbours and order of arrival. The device is this machine's: on a GPU the Triton kernels and captured graphs run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from octavo.config.options import Options
from octavo.core.buckets import Buckets
from octavo.core.messages import Submit
from octavo.core.outputs import TokenLogprobs
from octavo.core.params import SamplingParams
from octavo.core.prompt_logprobs import PromptRows
from octavo.engine.assemble import build_engine
from octavo.engine.configure import configure
from octavo.engine.engine_core import EngineCore
from octavo.errors import ConfigurationError
from octavo.ops import dispatch
from octavo.platforms import cuda
from octavo.platforms.platform import Kernels
from octavo.runner.batch import BatchBuilder, StaticBatchBuilder
from octavo.runner.graphs import EagerGraphs
from tests.models.test_equality import Replays
from tests.ops import interpreter

NUM_BATCHINGS = 50
VOCAB = 307
NUM_OUTPUT = 3

SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
WINDOWS = {
    "head_dim": 32,
    "sliding_window": 75,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 24,
    "hidden_activation": "gelu_pytorch_tanh",
    "final_logit_softcapping": 20.0,
    "attn_logit_softcapping": 30.0,
}
FAMILIES = {
    "llama": {**SMALL, "architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "qwen3": {**SMALL, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    "gemma3": {**SMALL, **WINDOWS, "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"},
}


@dataclass
class Answer:
    tokens: list[tuple[int, TokenLogprobs]] = field(default_factory=list)
    prompt: PromptRows | None = None


@dataclass(frozen=True)
class Asked:
    prompt: list[int]
    params: SamplingParams
    seed: int | None


@pytest.fixture(autouse=True)
def _ops_as_found() -> Iterator[None]:
    yield
    dispatch.use(())


def engine_of(model: dict[str, Any], dtype: str, kernels: Kernels | None = None, **options: Any) -> EngineCore:
    options = {"max_model_len": 512, "num_gpu_blocks_override": 600, "max_num_seqs": 64, **options}
    configured = configure(
        Options(model=model, load_format="dummy", dtype=dtype, threads=1, batch_invariant=True, **options)
    )
    platform = configured.platform
    engine = build_engine(configured.resolved.config, replace(platform, invariant=kernels or platform.invariant))
    with torch.inference_mode():  # dummy weights are within 0.001, which hardly moves a logit
        for parameter in engine.executor.worker.model.parameters():
            parameter *= 1000 / parameter.shape[1] ** 0.5 if parameter.dim() == 2 else 300
    return engine


def ask(rng: random.Random, stem: list[int], length: int, index: int) -> Asked:
    """Greedy and random requests in turn; some ask for more log-probabilities than others."""
    prompt = stem[: min(length // 2, len(stem))]
    prompt = prompt + [rng.randrange(VOCAB) for _ in range(length - len(prompt))]
    shared = {"max_tokens": NUM_OUTPUT, "ignore_eos": True, "logprobs": rng.choice([0, 2, 5, 20])}
    shared["prompt_logprobs"] = rng.choice([None, None, 3])
    shared["logprob_token_ids"] = rng.choice([None, [3], [9, 200, 4]])
    if index % 3 == 0:
        return Asked(prompt, SamplingParams(temperature=0, **shared), None)
    truncated = {} if index % 3 == 1 else {"top_k": 40, "top_p": 0.9, "min_p": 0.001, "repetition_penalty": 1.1}
    return Asked(prompt, SamplingParams(temperature=0.9, **truncated, **shared), rng.randrange(1 << 40))


def answers(
    engine: EngineCore, asked: list[Asked], arrivals: list[int], preempted_at: tuple[int, ...] = ()
) -> tuple[list[Answer], int, int]:
    """Of requests that come before the given steps; then preemptions and cached tokens."""
    found = [Answer() for _ in asked]
    num_preempted = num_cached = num_steps = 0
    waiting = sorted(range(len(asked)), key=lambda index: arrivals[index])
    while waiting or engine.has_work():
        while waiting and (arrivals[waiting[0]] <= num_steps or not engine.has_work()):
            index = waiting.pop(0)
            one = asked[index]
            engine.add(Submit(str(index), one.prompt, one.params, float(num_steps), seed=one.seed))
        step = engine.step()
        num_steps += 1
        if num_steps in preempted_at:
            num_preempted += len(engine.scheduler.running)
            engine.scheduler.preempt_all()
        for delta in step.deltas:
            assert delta.error is None, delta.error
            assert delta.logprobs is not None
            answer = found[int(delta.request_id)]
            answer.tokens += zip(delta.token_ids, delta.logprobs, strict=True)
            answer.prompt = delta.prompt_rows or answer.prompt
        if step.stats is not None:
            num_preempted += step.stats.num_preempted
            num_cached += step.stats.num_cached_tokens
    return found, num_preempted, num_cached


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_bit_is_the_same_in_random_batchings(family: str, dtype: str) -> None:
    rng = random.Random(f"{family} {dtype}")
    stem = [rng.randrange(VOCAB) for _ in range(150)]
    lengths = (1, 40, 130, 290)
    asked = [ask(rng, stem, length, index) for index, length in enumerate(lengths)]
    expected: list[Answer] = []
    alone = engine_of(FAMILIES[family], dtype, enable_prefix_caching=False)
    for one in asked:
        expected += answers(alone, [one], [0])[0]
    assert len({token for answer in expected for token, _ in answer.tokens}) > len(asked)
    num_preempted = num_cached = 0
    for number in range(NUM_BATCHINGS // len(FAMILIES) // 2 + 1):
        is_small = number % 3 == 2  # then all come at once, and some are sent back
        budget = rng.choice([64, 200, 2048] if is_small else [8, 33, 64, 200, 512, 2048])
        engine = engine_of(
            FAMILIES[family],
            dtype,
            max_num_batched_tokens=budget,
            max_num_seqs=min(budget, 16 if is_small else rng.choice([4, 16, 64])),
            enable_prefix_caching=rng.random() < 0.7,
            async_scheduling=rng.random() < 0.5,
            num_gpu_blocks_override=(45 if family == "gemma3" else 25) if is_small else 600,
            max_model_len=310 if is_small else 512,
            scheduler_reserve_full_isl=not is_small,
        )
        neighbours = [ask(rng, stem, rng.choice([2, 17, 60, 160]), index) for index in range(rng.randrange(6))]
        mixed = asked + neighbours
        for _ in range(rng.choice([1, 2])):  # the second time what was cached is there
            order = rng.sample(range(len(mixed)), len(mixed))
            arrivals = [0 if is_small else rng.choice([0, 0, rng.randrange(30)]) for _ in mixed]
            preempted_at = (3, 9, 20) if is_small else ()  # beside those that there is no room for
            found, preempted, cached = answers(engine, [mixed[index] for index in order], arrivals, preempted_at)
            num_preempted += preempted
            num_cached += cached
            for index, answer in zip(order, found, strict=True):
                if index < len(asked):
                    _check(answer, expected[index], asked[index].params)
    assert num_preempted > 0
    assert num_cached > 0


def _check(found: Answer, expected: Answer, params: SamplingParams) -> None:
    assert [token for token, _ in found.tokens] == [token for token, _ in expected.tokens]
    for (_, one), (_, other) in zip(found.tokens, expected.tokens, strict=True):
        assert one.token_ids == other.token_ids
        assert one.ranks == other.ranks
        assert len(one.logprobs) == 1 + (params.logprobs or 0) + len(params.logprob_token_ids or ())
        assert [value.hex() for value in one.logprobs] == [value.hex() for value in other.logprobs]
    assert found.prompt == expected.prompt
    assert (found.prompt is not None) == (params.prompt_logprobs is not None)


@pytest.mark.skipif("triton_invariant" not in dispatch.present()["linear"], reason="needs Triton")
def test_padding_changes_no_bit() -> None:
    """What a GPU runs, here in Triton's interpreter where there is none: steps at fixed addresses, padded, and computed
    again as a captured graph would, and steps as they are."""
    if not torch.cuda.is_available():
        interpreter.prepare()
    rng = random.Random(4)
    asked = [ask(rng, [], length, index) for index, length in enumerate([2, 5])]
    found = []
    with np.errstate(all="ignore"):  # the interpreter computes in numpy, and nobody looks at what is in the padding
        for is_padded in (False, True):
            options = {"max_num_batched_tokens": 6, "max_num_seqs": 3, "async_scheduling": True}
            engine = engine_of(FAMILIES["gemma3"], "float32", cuda.INVARIANT, **options)
            runner, replays = engine.executor.worker.runner, Replays()
            runner._batches = BatchBuilder(runner.table, 16)
            runner._graphs = EagerGraphs()
            if is_padded:
                runner._batches = StaticBatchBuilder(runner.table, 16, Buckets(3, 6), 6)
                runner._graphs = replays
            found.append(answers(engine, asked, [0, 0])[0])
    assert replays.num_replays > 0
    for index, one in enumerate(asked):
        _check(found[1][index], found[0][index], one.params)


def test_recurrent_models_are_refused() -> None:
    model = {**SMALL, "architectures": ["MambaForCausalLM"], "model_type": "mamba", "state_size": 8}
    with pytest.raises(ConfigurationError, match="batch_invariant: MambaForCausalLM has recurrent layers"):
        configure(Options(model=model, load_format="dummy", batch_invariant=True))


def test_the_mode_is_what_makes_the_difference() -> None:
    """Its kernels run, and only then."""
    engine_of(FAMILIES["llama"], "float32")
    wanted = "triton_invariant" if torch.cuda.is_available() else "invariant"
    assert {dispatch.chosen()[op] for op in ("linear", "silu_and_mul", "rope_and_write", "gather_logprobs")} == {wanted}
    plain = configure(Options(model=FAMILIES["llama"], load_format="dummy", dtype="float32", max_model_len=64))
    build_engine(plain.resolved.config, plain.platform)
    assert not {"invariant", "triton_invariant"} & set(dispatch.chosen().values())
