"""The same greedy tokens as transformers, for every family, however the engine gets there: prefix caching on and off,
any chunk budget, preemption, steps in flight, alone and in a batch of 64."""

from __future__ import annotations

import random
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers

from octavo.attention import select
from octavo.attention.backend import AttentionCall, AttentionQuery, StepContext
from octavo.config.options import Options
from octavo.core.buckets import Buckets
from octavo.core.messages import Submit
from octavo.core.params import SamplingParams
from octavo.engine.assemble import build_engine
from octavo.engine.configure import configure
from octavo.engine.engine_core import EngineCore
from octavo.ops.attention import paged_attention
from octavo.runner.batch import Batch, StaticBatchBuilder
from octavo.runner.graphs import Compute, Computed
from tests.models.harness import randomise, save
from tests.models.test_logits import VARIANTS, VOCAB, config_of

FAMILIES = ["llama", "mistral-window", "qwen2", "qwen3", "gemma3", "mamba", "mamba2", "bamba"]
NUM_OUTPUT = 12


@dataclass
class Reference:
    folder: Path
    num_groups: int
    prompts: list[list[int]]
    outputs: list[list[int]]


@pytest.fixture(scope="module", params=FAMILIES)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Eight prompts, some with the same beginning, and what transformers answers to each alone."""
    family, config = VARIANTS[request.param][0], config_of(request.param)
    torch.manual_seed(1)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    randomise(model, seed=1)
    folder = save(model, tmp_path_factory.mktemp(request.param))
    rng = random.Random(2)
    stem = [rng.randrange(VOCAB) for _ in range(64)]
    prompts = [
        stem[: rng.choice([0, 20, 48, 64])] + [rng.randrange(VOCAB) for _ in range(n)]
        for n in (1, 2, 5, 9, 17, 23, 30, 33)
    ]
    outputs = []
    with torch.inference_mode():
        for prompt in prompts:
            tokens = torch.tensor([prompt])
            for _ in range(NUM_OUTPUT):
                best = model(tokens).logits[0, -1].argmax()
                tokens = torch.cat([tokens, best.view(1, 1)], 1)
            outputs.append(tokens[0, len(prompt) :].tolist())
    return Reference(folder, 2 if family in ("Gemma3", "Bamba") else 1, prompts, outputs)


def engine_for(reference: Reference, **options: object) -> EngineCore:
    configured = configure(
        Options(
            model=str(reference.folder),
            dtype="float32",
            max_model_len=128,
            threads=1,
            skip_tokenizer_init=True,
            **options,
        )
    )
    return build_engine(configured.resolved.config, configured.platform)


def run(
    engine: EngineCore, prompts: list[list[int]], alone: bool, preempt_every: int = 0
) -> tuple[list[list[int]], int, int]:
    """Output tokens of each prompt, preemptions, cached tokens. `preempt_every` so many steps, everything starts over:
    a state that never grows is never short of memory."""
    outputs: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}
    num_preempted = num_cached = num_steps = 0
    params = SamplingParams(temperature=0, max_tokens=NUM_OUTPUT, ignore_eos=True)
    for i, prompt in enumerate(prompts):
        engine.add(Submit(str(i), prompt, params, float(i)))
        while engine.has_work() and (alone or i == len(prompts) - 1):
            step = engine.step()
            num_steps += 1
            if preempt_every and num_steps % preempt_every == 0:
                num_preempted += len(engine.scheduler.running)
                engine.scheduler.preempt_all()
            for delta in step.deltas:
                assert delta.error is None
                outputs[delta.request_id] += delta.token_ids
            if step.stats is not None:
                num_preempted += step.stats.num_preempted
                num_cached += step.stats.num_cached_tokens
    assert engine.scheduler.cache.usage == 0
    return list(outputs.values()), num_preempted, num_cached


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("budget", [1, 7, 64, 8192])
@pytest.mark.parametrize("caching", [True, False])
def test_greedy_tokens_equal_those_of_transformers(
    reference: Reference, caching: bool, budget: int, depth: int
) -> None:
    options = {
        "enable_prefix_caching": caching,
        "max_num_batched_tokens": budget,
        "max_num_seqs": min(64, budget),
        "async_scheduling": depth == 2,
    }
    for alone in (True, False):
        prompts = reference.prompts if alone or budget == 1 else reference.prompts * 8  # a batch of 64
        engine = engine_for(reference, num_gpu_blocks_override=600, **options)
        outputs, num_preempted, num_cached = run(engine, prompts, alone)
        assert outputs == (reference.outputs * 8)[: len(prompts)]
        assert num_preempted == 0 and (num_cached > 0) == caching


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_preemption_changes_no_token(reference: Reference, caching: bool, depth: int, policy: str) -> None:
    engine = engine_for(
        reference,
        num_gpu_blocks_override=22 if reference.num_groups == 2 else 11,
        scheduler_reserve_full_isl=False,
        enable_prefix_caching=caching,
        max_num_batched_tokens=64,
        max_num_seqs=16,
        async_scheduling=depth == 2,
        scheduling_policy=policy,
    )
    every = (7 if caching else 40) if engine.scheduler.cache.has_states else 0
    outputs, num_preempted, _ = run(engine, reference.prompts * 3, alone=False, preempt_every=every)
    assert outputs == reference.outputs * 3
    assert num_preempted > 0


def test_with_int8_keys_and_values_tokens_are_the_same_however_they_are_got(reference: Reference) -> None:
    """The same as each other, that is: next to those of transformers a prompt may go another way."""
    options = {"kv_cache_dtype": "int8_per_token_head", "num_gpu_blocks_override": 600}
    expected, _, _ = run(engine_for(reference, enable_prefix_caching=False, **options), reference.prompts, alone=True)
    same = [found == wanted for found, wanted in zip(expected, reference.outputs, strict=True)]
    assert sum(same) >= len(same) / 2
    for budget in (7, 64):
        engine = engine_for(reference, max_num_batched_tokens=budget, max_num_seqs=budget, **options)
        outputs, _, num_cached = run(engine, reference.prompts * 3, alone=False)
        assert outputs == expected * 3 and num_cached > 0


class DeviceAttention:
    """Reads a step from its tensors alone, as a backend must whose steps are captured."""

    name = "device_attention"
    is_capturable = True
    reads_shared_prefix = False

    def why_not(self, query: AttentionQuery) -> None:
        return None

    def prepare(self) -> None:
        """Nothing to load."""

    def plan(self, step: StepContext, group: int) -> None:
        return None

    def graph_key(self, step: StepContext) -> Hashable:
        return None

    def forward(
        self, q_TNH: torch.Tensor, cache: torch.Tensor, step: StepContext, group: int, call: AttentionCall
    ) -> torch.Tensor:
        table = step.groups[group].block_table
        window, soft_cap = call.window, call.soft_cap
        return paged_attention(q_TNH, cache, table, step.query_start, step.seq_lens, call.scale, window, soft_cap)


class Replays:
    """What a captured graph does: computes again what the tensors of its first batch hold."""

    def __init__(self) -> None:
        self.first: dict[Hashable, Batch] = {}
        self.num_replays = 0

    def run(self, batch: Batch, key: Hashable | None, compute: Compute) -> Computed:
        assert batch.bucket is not None and key is not None
        first = self.first.setdefault(key, batch)
        self.num_replays += first is not batch
        for group in batch.step.groups:
            group.slots.clamp_(min=0)  # the null block's: the specification of write_kv leaves no token out
        return compute(first)


@pytest.mark.parametrize(("budget", "depth"), [(16, 1), (64, 2)])
def test_steps_at_fixed_addresses_give_the_same_tokens(
    reference: Reference, budget: int, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reference.folder.name.startswith(("mamba", "bamba")):
        pytest.skip("recurrent layers read of their step what only the host knows")
    monkeypatch.setitem(select._known, "device_attention", f"{__name__}:DeviceAttention")
    engine = engine_for(
        reference,
        attention_backend="device_attention",
        num_gpu_blocks_override=600,
        max_num_batched_tokens=budget,
        max_num_seqs=16,
        async_scheduling=depth == 2,
    )
    runner, replays = engine.executor.worker.runner, Replays()
    runner._batches = StaticBatchBuilder(runner.table, 16, Buckets(16, budget), budget)
    runner._graphs = replays
    outputs, _, num_cached = run(engine, reference.prompts * 3, alone=False)
    assert outputs == reference.outputs * 3
    assert num_cached > 0 and replays.num_replays > len(replays.first)
