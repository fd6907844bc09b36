"""A prompt's log-probabilities are those of transformers, for every kind of layer, however the engine gets there: cache
cold, warm and half warm, any chunk budget, preemption, steps in flight, with neighbours that ask for other things."""

from __future__ import annotations

import random
import subprocess
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers

from octavo.core.buckets import Buckets
from octavo.core.messages import Submit
from octavo.core.params import SamplingParams
from octavo.core.prompt_logprobs import PromptRows
from octavo.engine.engine_core import EngineCore
from octavo.runner.batch import StaticBatchBuilder
from tests.models import test_equality
from tests.models.harness import randomise, save
from tests.models.test_logits import VARIANTS, VOCAB, config_of

FAMILIES = ["llama", "gemma3", "mamba2", "bamba"]
TOLERANCE = 1e-4
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Reference:
    folder: Path
    prompts: list[list[int]]
    logits: list[torch.Tensor]  # [len(prompt), V] of each


@pytest.fixture(scope="module", params=FAMILIES)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Prompts of which some begin alike, some are the beginning of others, and some end at the end of a block."""
    torch.manual_seed(1)
    model = getattr(transformers, f"{VARIANTS[request.param][0]}ForCausalLM")(config_of(request.param)).eval()
    randomise(model, seed=1)
    folder = save(model, tmp_path_factory.mktemp(request.param))
    rng = random.Random(3)
    stem = [rng.randrange(VOCAB) for _ in range(96)]
    prompts = [stem[:80], stem, [*stem[:50], 5, 6, 7], stem[:33], [*stem[:70], *stem[:30]], [9], [9, 8]]
    with torch.inference_mode():
        logits = [model(torch.tensor([prompt])).logits[0].float() for prompt in prompts]
    return Reference(folder, prompts, logits)


def engine_for(reference: Reference, **options: object) -> EngineCore:
    return test_equality.engine_for(reference, **{"num_gpu_blocks_override": 600, **options})  # type: ignore[arg-type]


def serve(
    engine: EngineCore, asked: list[tuple[list[int], SamplingParams]], preempt_every: int = 0
) -> tuple[list[PromptRows | None], int]:
    """Rows of each request, and how many tokens were computed."""
    rows: dict[str, PromptRows] = {}
    num_computed = num_steps = 0
    for i, (prompt, params) in enumerate(asked):
        engine.add(Submit(str(i), prompt, params, float(i)))
    while engine.has_work():
        outputs = engine.step()
        num_steps += 1
        if preempt_every and num_steps % preempt_every == 0:
            engine.scheduler.preempt_all()
        for delta in outputs.deltas:
            assert delta.error is None
            if delta.prompt_rows is not None:
                rows[delta.request_id] = delta.prompt_rows
        num_computed += outputs.stats.num_scheduled_tokens if outputs.stats is not None else 0
    return [rows.get(str(i)) for i in range(len(asked))], num_computed


def params(num_top: int | None = None, **fields: object) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, prompt_logprobs=num_top, **fields)


def check(reference: Reference, index: int, rows: PromptRows | None, num_top: int, is_logits: bool = False) -> None:
    assert rows is not None
    prompt, num_top = reference.prompts[index], VOCAB if num_top == -1 else num_top
    values = reference.logits[index][:-1]
    values = values if is_logits else values.log_softmax(-1)
    shape = (len(prompt) - 1, 1 + num_top)
    token_ids, ranks = (torch.tensor(array("i", data)).view(shape).long() for data in (rows.token_ids, rows.ranks))
    told = torch.tensor(array("f", rows.logprobs)).view(shape)
    assert token_ids[:, 0].tolist() == prompt[1:]
    wanted = values.gather(1, token_ids)
    torch.testing.assert_close(told, wanted, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(told[:, 1:], values.topk(num_top).values, atol=TOLERANCE, rtol=0)
    for slack, compare in ((TOLERANCE, torch.le), (-TOLERANCE, torch.ge)):  # exact, but for what rounding may swap
        greater = (values[:, None] > wanted[..., None] + slack).sum(-1)
        assert compare(greater + 1, ranks).all()


@pytest.mark.parametrize(
    ("caching", "budget", "depth"),
    [(True, 1, 2), (True, 7, 1), (True, 64, 2), (True, 8192, 1), (False, 7, 2), (False, 8192, 1)],
)
def test_cold_half_warm_and_warm(reference: Reference, caching: bool, budget: int, depth: int) -> None:
    if budget == 1 and not reference.folder.name.startswith("llama"):
        pytest.skip("so many steps for one kind of layer are enough")
    engine = engine_for(
        reference,
        enable_prefix_caching=caching,
        max_num_batched_tokens=budget,
        max_num_seqs=min(8, budget),
        async_scheduling=depth == 2,
    )
    visits = []
    for num_tops in ([1], [1, 2, 0, 5, -1, 3, 1], [None, 2, 2, -1, None, 0, 40], [0, 2]):
        asked = [(prompt, params(num_top)) for prompt, num_top in zip(reference.prompts, num_tops, strict=False)]
        rows, num_computed = serve(engine, asked)
        visits.append(num_computed)
        for index, num_top in enumerate(num_tops):
            if num_top is None:
                assert rows[index] is None
            else:
                check(reference, index, rows[index], num_top)
    total = sum(map(len, reference.prompts)) + len(reference.prompts)
    assert (visits[1] < total - 32) == caching, "the first prompt had been there"
    assert visits[3] == (2 * (16 + 1) if caching else 80 + 96 + 2), "both end with a block: that one, and an output"
    assert engine.scheduler.cache.usage == 0


@pytest.mark.parametrize(("caching", "depth"), [(True, 2), (False, 1)])
def test_preemption(reference: Reference, caching: bool, depth: int) -> None:
    engine = engine_for(
        reference,
        enable_prefix_caching=caching,
        max_num_batched_tokens=32,
        max_num_seqs=8,
        async_scheduling=depth == 2,
    )
    every = 7 if caching else 30
    asked = [(prompt, params(2)) for prompt in reference.prompts]
    rows, _ = serve(engine, asked, preempt_every=every)
    for index in range(len(asked)):
        check(reference, index, rows[index], 2)


def test_logits_in_place_of_log_probabilities_and_a_choice_of_tokens(reference: Reference) -> None:
    engine = engine_for(reference, max_num_batched_tokens=32, max_num_seqs=8)
    prompt, values = reference.prompts[1], reference.logits[1][:-1]
    each = [[(3 * i) % VOCAB, (5 * i + 1) % VOCAB] for i in range(95 - 40)]
    asked = [
        params(3),
        params(3, logprobs_mode="processed_logits"),
        params(1, prompt_logprob_token_ids=[4, 9, 4], prompt_logprob_start=50),
        params(prompt_logprob_token_ids=each, prompt_logprob_start=40),
        params(prompt_logprob_token_ids=each[:20], prompt_logprob_start=10, logprobs_mode="raw_logits"),
    ]
    for _ in range(2):
        engine.scheduler.cache.reset()
        rows, _ = serve(engine, [(prompt, one) for one in asked])
        for index, (num_top, is_logits) in enumerate([(3, False), (3, True), (1, False)]):
            check(reference, 1, rows[index], num_top, is_logits)
        wanted = [
            values.log_softmax(-1)[50:, [4, 9, 4]],
            values.log_softmax(-1)[40:].gather(1, torch.tensor(each)),
            values[10:30].gather(1, torch.tensor(each[:20])),
        ]
        for found, expected in zip(rows[2:], wanted, strict=True):
            assert found is not None
            told = torch.tensor(array("f", found.chosen)).view(expected.shape)
            torch.testing.assert_close(told, expected, atol=TOLERANCE, rtol=0)
        engine.executor.worker.runner._finish._scorer._slice = 3  # positions whose logits exist at once


def test_a_choice_of_tokens_is_served_from_the_cache_before_its_start(reference: Reference) -> None:
    engine = engine_for(reference, max_num_batched_tokens=64, max_num_seqs=8)
    prompt = reference.prompts[1]
    one = params(prompt_logprob_token_ids=[4], prompt_logprob_start=70)
    serve(engine, [(prompt[:66], params())])
    (rows,), num_computed = serve(engine, [(prompt, one)])
    assert rows is not None and num_computed == 96 - 64 + 1
    wanted = reference.logits[1][70:-1].log_softmax(-1)[:, 4]
    torch.testing.assert_close(torch.tensor(array("f", rows.chosen)), wanted, atol=TOLERANCE, rtol=0)


def test_steps_at_fixed_addresses(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    if not reference.folder.name.startswith(("llama", "gemma3")):
        pytest.skip("one kind and two kinds of cache are enough")
    name = f"{test_equality.__name__}:DeviceAttention"
    monkeypatch.setitem(test_equality.select._known, "device_attention", name)
    engine = engine_for(reference, attention_backend="device_attention", max_num_batched_tokens=40, max_num_seqs=8)
    runner = engine.executor.worker.runner
    runner._batches = StaticBatchBuilder(runner.table, 16, Buckets(8, 40), 40)
    runner._graphs = test_equality.Replays()
    rows, _ = serve(engine, [(prompt, params(2)) for prompt in reference.prompts])
    for index in range(len(rows)):
        check(reference, index, rows[index], 2)


def test_memory_is_bounded() -> None:
    """All logits of this prompt would be 730 MiB, and working with them takes several times that."""
    code = "from benchmarks.prompt_logprobs import measure; print(*measure(1200, 152_000, 5, 8192)[0:1])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 400 << 20, done.stdout
