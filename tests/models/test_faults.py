"""A row that raises or turns to NaN in a real forward ends alone; its neighbours get the tokens they would have had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from octavo.attention.backend import StepContext
from octavo.config.options import Options
from octavo.core.messages import Submit
from octavo.core.params import SamplingParams
from octavo.core.request import FinishReason
from octavo.engine.assemble import build_engine
from octavo.engine.configure import configure
from octavo.engine.engine_core import EngineCore
from tests.models.harness import randomise, save
from tests.models.test_logits import VOCAB, config_of

FATAL = VOCAB - 1  # the token id whose row fails
NUM_OUTPUT = 12


@pytest.fixture(scope="module", params=["llama", "gemma3", "bamba"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = {"llama": "Llama", "gemma3": "Gemma3", "bamba": "Bamba"}[request.param]
    torch.manual_seed(3)
    model = getattr(transformers, f"{family}ForCausalLM")(config_of(request.param)).eval()
    randomise(model, seed=3)
    return save(model, tmp_path_factory.mktemp(request.param))


def make_engine(folder: Path, depth: int) -> EngineCore:
    options = Options(
        model=str(folder), dtype="float32", max_model_len=128, threads=1, skip_tokenizer_init=True,
        num_gpu_blocks_override=200, max_num_batched_tokens=64, max_num_seqs=16, async_scheduling=depth == 2,
    )  # fmt: skip
    configured = configure(options)
    return build_engine(configured.config, configured.platform)


def run(engine: EngineCore, prompts: dict[str, list[int]]) -> tuple[dict[str, list[int]], dict[str, str | None]]:
    """Outputs and errors of requests that came together."""
    params = SamplingParams(temperature=0.9, max_tokens=NUM_OUTPUT, ignore_eos=True)
    for request_id, prompt in prompts.items():
        engine.add(Submit(request_id, prompt, params, 0.0, seed=len(request_id) + sum(prompt)))
    outputs: dict[str, list[int]] = {}
    errors: dict[str, str | None] = {}
    while engine.has_work():
        for delta in engine.step().deltas:
            outputs.setdefault(delta.request_id, []).extend(delta.token_ids)
            if delta.finish_reason is not None:
                errors[delta.request_id] = delta.error
                assert (delta.finish_reason == FinishReason.ERROR) == (delta.error is not None)
    assert engine.scheduler.cache.usage == 0
    return outputs, errors


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("fault", ["raises", "nan"])
@pytest.mark.parametrize("place", ["prompt", "decode"])
def test_only_the_guilty_request_ends(folder: Path, fault: str, place: str, depth: int) -> None:
    stem = [(7 * i) % (VOCAB - 2) for i in range(40)]
    prompts = {str(i): [*stem, i + 1, i + 2] for i in range(8)}
    expected, no_errors = run(make_engine(folder, depth), prompts)
    assert not any(no_errors.values())

    engine = make_engine(folder, depth)
    model = engine.executor.worker.model
    forward = model.forward
    # in its prompt, or (the guilty prompt is known by its last token) some steps later
    guilty_prompt = [*stem, 5, FATAL]
    first_bad = len(guilty_prompt) + (4 if place == "decode" else -1)

    def faulty(input_ids: torch.Tensor, step: StepContext) -> torch.Tensor:
        hidden = forward(input_ids, step)
        tokens = engine.executor.worker.runner.table.tokens
        for r, row in enumerate(step.rows.tolist()):
            end = int(step.seq_lens[r])
            if end > first_bad and tokens[row, len(guilty_prompt) - 1] == FATAL:
                if fault == "raises":
                    raise RuntimeError("this row fails")
                hidden[int(step.query_start[r]) : int(step.query_start[r + 1])] = torch.nan
                for parts in engine.executor.worker.cache.parts.values():  # what it wrote is spoilt too
                    for view in parts.values():
                        table = step.groups[0].block_table[r]
                        view[table[table > 0][-1].long()] = torch.nan
        return hidden

    model.forward = faulty
    with_guilty = {**prompts, "guilty": guilty_prompt}
    order = [*list(prompts)[:5], "guilty", *list(prompts)[5:]]
    outputs, errors = run(engine, {request_id: with_guilty[request_id] for request_id in order})
    assert errors.pop("guilty") is not None
    del outputs["guilty"]
    assert outputs == expected and not any(errors.values())
    again, errors = run(engine, prompts)
    assert again == expected and not any(errors.values()), "the engine is not what it was before"


class Memory:
    """Raises what torch raises for want of memory, in steps where `is_short` says so. Keeps their sizes."""

    def __init__(self, engine: EngineCore, is_short: Callable[[torch.Tensor, StepContext], bool]) -> None:
        self._forward, self._is_short = engine.executor.worker.model.forward, is_short
        self.sizes: list[int] = []
        self.num_failures = 0
        engine.executor.worker.model.forward = self

    def __call__(self, input_ids: torch.Tensor, step: StepContext) -> torch.Tensor:
        self.sizes.append(len(input_ids))
        if self._is_short(input_ids, step):
            self.num_failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self._forward(input_ids, step)


PROMPTS = {str(i): [(7 * j) % (VOCAB - 2) for j in range(40)] + [i + 1, i + 2] for i in range(6)}


@pytest.mark.parametrize("depth", [1, 2])
def test_too_little_memory_once_costs_no_request_and_no_token(folder: Path, depth: int) -> None:
    expected, _ = run(make_engine(folder, depth), PROMPTS)
    engine = make_engine(folder, depth)
    memory = Memory(engine, lambda input_ids, step: len(memory.sizes) == 9)  # while they decode
    outputs, errors = run(engine, PROMPTS)
    assert memory.num_failures == 1
    assert outputs == expected and not any(errors.values())


def test_too_little_memory_for_large_steps_makes_them_smaller(folder: Path) -> None:
    """And larger again, later."""
    expected, _ = run(make_engine(folder, 2), PROMPTS)
    engine = make_engine(folder, 2)
    memory = Memory(engine, lambda input_ids, step: len(input_ids) > 40)
    outputs, errors = run(engine, PROMPTS)
    assert outputs == expected and not any(errors.values())
    assert memory.num_failures == 1
    largest = max(memory.sizes)
    later = memory.sizes[memory.sizes.index(largest) + 1 :]
    assert max(later) <= engine.scheduler.token_budget == largest // 2
    engine._limit._patience = 3
    memory._is_short = lambda input_ids, step: False
    outputs, _ = run(engine, PROMPTS)
    assert outputs == expected and engine.scheduler.token_budget == 64


@pytest.mark.parametrize("depth", [1, 2])
def test_a_request_without_memory_however_small_its_steps_ends_alone(folder: Path, depth: int) -> None:
    expected, _ = run(make_engine(folder, depth), PROMPTS)
    engine = make_engine(folder, depth)
    tokens = engine.executor.worker.runner.table.tokens
    Memory(engine, lambda input_ids, step: any(tokens[row, 30] == FATAL for row in step.rows.tolist()))
    guilty = {"guilty": [*PROMPTS["0"][:30], FATAL]}
    outputs, errors = run(engine, {**dict(list(PROMPTS.items())[:3]), **guilty, **dict(list(PROMPTS.items())[3:])})
    error = errors.pop("guilty")
    assert error is not None and error.startswith("OutOfMemory: the device has too little memory for this step")
    outputs.pop("guilty")
    assert outputs == expected and not any(errors.values())
    assert engine.scheduler.token_budget == 64  # it was not the size
