"""Greedy tokens of the published models, octavo beside transformers, both in float32 with the same weights.

transformers' model is filled from octavo's dequantised tensors, since its own GGUF loader takes most of a minute;
`tests_own_loader` says so where that one is wanted. Token ids are octavo's on both sides.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from octavo.config.checkpoint import find_checkpoint
from octavo.config.options import Options
from octavo.core.messages import Submit
from octavo.core.params import SamplingParams
from octavo.engine.assemble import build_engine
from octavo.engine.configure import configure
from octavo.engine.engine_core import EngineCore
from octavo.loader.files import open_weights
from octavo.tokenization.tokenizer import Tokenizer

NUM_OUTPUT = 24
LENGTHS = (1, 2, 7, 16, 33, 64, 100, 150, 200, 257, 300, 400, 512, 600, 700, 850, 1000, 1200, 1350, 1500)
LENGTHS_IN_CI = (1, 16, 33, 100, 200, 300)


@dataclass(frozen=True)
class Case:
    """One way to run the engine."""

    name: str
    options: dict[str, Any]
    batch: int = 1  # 1: one prompt after the other
    preempts: bool = False


def cases(longest: int) -> Iterator[Case]:
    """The matrix; `longest` is the longest prompt. Budget 1 would take hours at 1,500 tokens, so it runs to 200."""
    yield Case("plain", {})
    yield Case("no prefix caching", {"enable_prefix_caching": False})
    for budget in (7, 64, 8192) if longest > 200 else (1, 7, 64, 8192):
        yield Case(f"budget {budget}", {"max_num_batched_tokens": budget, "max_num_seqs": min(budget, 64)})
    yield Case("depth 2", {"async_scheduling": True})
    yield Case("batch of 64", {"max_num_seqs": 64}, batch=64)
    yield Case("batch of 64, depth 2, no caching", {"async_scheduling": True, "enable_prefix_caching": False}, batch=64)
    few = -(-(longest + NUM_OUTPUT) // 16) + 6
    yield Case(
        "preemption",
        {
            "scheduler_reserve_full_isl": False,
            "num_gpu_blocks_override": few,
            "max_num_batched_tokens": 64,
            "max_num_seqs": 16,
        },
        batch=64,
        preempts=True,
    )


def make_prompts(path: Path, lengths: Iterable[int]) -> list[list[int]]:
    """Prompts of exactly these lengths: running English, so that greedy choices are not near-ties; those of an even
    place share their beginning."""
    tokenizer = Tokenizer.from_path(path)
    words = (Path(__file__).parents[2] / "LICENSE").read_text().split()
    rng = random.Random(7)
    prompts = []
    for place, length in enumerate(lengths):
        start = 0 if place % 2 == 0 else rng.randrange(len(words) // 2)
        text = " ".join(words[start:] + words)
        prompts.append(tokenizer.encode(text)[:length])
        assert len(prompts[-1]) == length
    return prompts


def transformers_model(path: Path, tests_own_loader: bool = False) -> Any:
    if tests_own_loader:
        return transformers.AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32
        ).eval()
    checkpoint = find_checkpoint(str(path))
    config = dict(checkpoint.config)
    config.pop("quantization_config", None)
    made = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    model.to_empty(device="cpu")
    with open_weights(checkpoint) as weights:
        state = {entry.name: entry.read().float() for entry in weights}
    missing, unexpected = model.load_state_dict(state, strict=False, assign=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    _restore_buffers(model, made)
    return model.eval()


def _restore_buffers(model: Any, config: Any) -> None:
    """Buffers that no checkpoint holds (rotary frequencies, embedding scales) are made again, as construction would."""
    values = {**config.to_dict(), "num_hidden_layers": 6, "vocab_size": 8, "pad_token_id": 0}
    if values.get("layer_types"):
        values["layer_types"] = values["layer_types"][:6]
    fresh = transformers.AutoModelForCausalLM.from_config(type(config)(**values))
    buffers = dict(fresh.named_buffers())
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


def reference_outputs(model: Any, prompts: list[list[int]], num_output: int = NUM_OUTPUT) -> list[list[int]]:
    outputs = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            tokens = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=num_output,
                max_new_tokens=num_output,
                generation_config=transformers.GenerationConfig(eos_token_id=None, pad_token_id=0),
            )
            outputs.append(tokens[0, len(prompt) :].tolist())
    return outputs


def make_engine(path: Path, case: Case) -> EngineCore:
    options = {"max_model_len": 2048, "max_num_seqs": 64, **case.options}
    if case.preempts:
        options["max_model_len"] = None
    configured = configure(Options(model=str(path), dtype="float32", **options))
    return build_engine(configured.resolved.config, configured.platform)


def octavo_outputs(
    engine: EngineCore, prompts: list[list[int]], batch: int, num_output: int = NUM_OUTPUT
) -> tuple[list[list[int]], int]:
    """Output tokens, and how often a request was preempted."""
    outputs: list[list[int]] = [[] for _ in prompts]
    preempted = 0
    params = SamplingParams(temperature=0, max_tokens=num_output, ignore_eos=True)
    for start in range(0, len(prompts), batch):
        for i in range(start, min(start + batch, len(prompts))):
            engine.add(Submit(str(i), prompts[i], params, float(i)))
        while engine.has_work():
            step = engine.step()
            preempted += step.stats.num_preempted if step.stats else 0
            for delta in step.deltas:
                assert delta.error is None, delta.error
                outputs[int(delta.request_id)] += delta.token_ids
    return outputs, preempted
