"""What each sampling feature costs when all rows of a step use it: microseconds, and as a share of the step. JSON out.

    python -m benchmarks.sampling_cost [--models tiny,demo] [--batch 256] [--steps 8] [--threads N] [--output FILE]

Of several steps the fastest counts. `sampling_us` is all of a step's sampling, from logits on the device to tokens on
the host, the head that makes the logits left out; `overhead_us` is what it takes more than plain draws do,
`share_of_step` that over a whole plain decode step of the model. Features do not depend on a model's layers, only on
its vocabulary, so those of a large model are measured with one of its layers. Grammar masks are made while the forward
runs: `host_us` is the making, by backend (`benchmarks/structured.py` has more forms), `sampling_us` has their
application.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.structured import FORMS, made_up_vocabulary, measure
from octavo.config.options import make_options
from octavo.core.messages import Submit
from octavo.core.params import SamplingParams
from octavo.core.step import TokenMasks
from octavo.core.structured import AUTO_ORDER, StructuredOutputsParams
from octavo.engine.assemble import build_engine
from octavo.engine.configure import configure
from octavo.engine.engine_core import EngineCore
from octavo.errors import InvalidRequest
from octavo.sampling.processors import BatchUpdate, LogitsProcessor
from octavo.structured.compile import Compiler

COMMON = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "hidden_act": "silu", "eos_token_id": 0}
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "dtype": "float32",
    },
    "demo": {  # SmolLM2-135M
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 512, "dtype": "bfloat16",
    },
}  # fmt: skip
PROMPT = list(range(1, 9))


def add_one(output_token_ids: list[int], logits: Tensor) -> Tensor:
    logits[7] += 1.0
    return logits


class AddOneToAll(LogitsProcessor):
    def __init__(self, config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.num_rows = 0

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is not None:
            self.num_rows = batch_update.batch_size

    def apply(self, logits: Tensor) -> Tensor:
        logits[: self.num_rows, 7] += 1.0
        return logits


FEATURES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "seeds": {"seed": 1},
    "top_k, top_p, min_p": {"top_k": 50, "top_p": 0.9, "min_p": 0.02},
    "top_p": {"top_p": 0.9},
    "penalties": {"repetition_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.1},
    "min_tokens": {"min_tokens": 400, "stop_token_ids": [3, 4, 5]},
    "logit_bias": {"logit_bias": dict.fromkeys(range(10, 40), 0.5)},
    "allowed_token_ids": {"allowed_token_ids": list(range(10, 900))},
    "bad_words": {"bad_words_token_ids": [[9], *([i, i + 1, i + 2] for i in range(20, 40))]},
    "logprobs 5": {"logprobs": 5},
    "logprobs 5, processed": {"logprobs": 5, "logprobs_mode": "processed_logprobs"},
    "logprobs 5, processed, top_p": {"logprobs": 5, "logprobs_mode": "processed_logprobs", "top_p": 0.9},
    "logprob_token_ids, 2": {"logprob_token_ids": [11, 12]},
    "a logits processor of each request": {"logits_processors": [add_one]},
}
OF_ENGINE = "a logits processor of the engine"


class Bench:
    """One engine, with clocks round the parts of its steps."""

    def __init__(self, shape: dict[str, Any], batch: int, **options: Any) -> None:
        options = {
            "load_format": "dummy", "max_num_seqs": batch, "max_num_batched_tokens": max(2048, batch),
            "max_model_len": 512, "kv_cache_memory_bytes": "1GiB", "async_scheduling": False, **options,
        }  # fmt: skip
        configured = configure(make_options(options), {**COMMON, **shape})
        self.engine: EngineCore = build_engine(configured.config, configured.platform)
        self.batch = batch
        self.masks: TokenMasks | None = None  # for all rows of a full batch
        worker = self.engine.executor.worker  # type: ignore[attr-defined]
        self.device: torch.device = worker.device
        self.sampling: list[float] = []
        runner, sampler = worker.runner, worker.runner._finish._sampler
        collect, sample = runner._finish.collect, sampler.sample

        def timed_sample(*arguments: Any) -> Any:
            self.wait()
            self.sampling.append(-time.perf_counter())
            masks = self.masks if len(arguments[2]) == self.batch else None  # not while the batch fills
            return sample(*arguments[:4], masks)

        def timed_collect(*arguments: Any) -> Any:
            result = collect(*arguments)
            self.sampling[-1] += time.perf_counter()
            return result

        sampler.sample, runner._finish.collect = timed_sample, timed_collect

    def wait(self) -> None:
        if self.device.type != "cpu":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def running(self, fields: dict[str, Any]) -> Iterator[None]:
        """A full batch, past its prompts."""
        params = SamplingParams(**{"ignore_eos": True, "max_tokens": 480, **fields})
        for i in range(self.batch):
            self.engine.add(Submit(str(i), [*PROMPT, 1 + i % 500], params, 0.0, seed=params.seed, eos_token_ids=[0]))
        while len(self.engine.scheduler.running) < self.batch:
            self.engine.step()
        for _ in range(3):
            self.engine.step()
        yield
        self.engine.abort([str(i) for i in range(self.batch)])
        while self.engine.has_work():
            self.engine.step()

    def measure(self, fields: dict[str, Any], steps: int) -> tuple[float, float]:
        """Microseconds of the sampling, and of the whole step."""
        with self.running(fields):
            whole = []
            self.sampling.clear()
            for _ in range(steps):
                before = time.perf_counter()
                self.engine.step()
                self.wait()
                whole.append(time.perf_counter() - before)
            sampling = min(self.sampling)
        return sampling * 1e6, min(whole) * 1e6


def grammar_rows(batch: int, vocabulary_size: int, steps: int) -> Iterator[tuple[str, float]]:
    """(backend, microseconds to make all masks of a step and to follow the tokens)."""
    vocabulary = made_up_vocabulary(vocabulary_size)
    compiler = Compiler(lambda: vocabulary, 2)
    try:
        for backend in AUTO_ORDER:
            try:
                compiled = compiler.compile(StructuredOutputsParams(**FORMS["json schema"]), (backend,)).result()
            except InvalidRequest as error:
                print(f"{backend} is left out: {error}", flush=True)
                continue
            once = measure(compiled, vocabulary, 1, 2)["mask_us"] * batch / 1e6
            found = measure(compiled, vocabulary, batch, max(2, min(steps, int(10 / max(once, 1e-6)))))
            yield backend, found["mask_us"] + found["accept_us"]
    finally:
        compiler.shutdown()


def bench_model(name: str, batch: int, steps: int, threads: int | None = None) -> dict[str, Any]:
    shape, options = MODELS[name], {} if threads is None else {"threads": threads}
    whole = Bench(shape, batch, **options)
    _, step_us = whole.measure({}, max(3, steps // 2))
    whole.engine.shutdown()
    light = {**shape, "num_hidden_layers": 1}
    bench = Bench(light, batch, **options)
    rows: list[dict[str, Any]] = []
    plain_us, _ = bench.measure({}, steps)

    def add(feature: str, sampling_us: float, **more: Any) -> None:
        overhead = sampling_us - plain_us
        share = round(overhead / step_us, 4)
        rows.append({"feature": feature, "sampling_us": round(sampling_us), "overhead_us": round(overhead)})
        rows[-1].update({"share_of_step": share, **more})

    for feature, fields in FEATURES.items():
        add(feature, bench.measure(fields, steps)[0])
    words = -(-shape["vocab_size"] // 32)
    bits = np.random.default_rng(0).integers(-(2**31), 2**31, (batch, words), dtype=np.int64).astype(np.int32)
    bench.masks = TokenMasks(list(range(batch)), bits)
    masked_us, _ = bench.measure({}, steps)
    bench.masks = None
    again_us, _ = bench.measure({}, steps)
    bench.engine.shutdown()
    of_engine = Bench(light, batch, logits_processors=["benchmarks.sampling_cost:AddOneToAll"], **options)
    add(OF_ENGINE, of_engine.measure({}, steps)[0])
    of_engine.engine.shutdown()
    for backend, host_us in grammar_rows(batch, shape["vocab_size"], steps):
        add(f"grammar masks, {backend}", masked_us, host_us=round(host_us))
    return {
        "model": name,
        "vocabulary": shape["vocab_size"],
        "step_us": round(step_us),
        "plain_sampling_us": round(plain_us),
        "plain_sampling_again_us": round(again_us),  # how far two measurements of the same are apart
        "features": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny,demo")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, help="of arithmetic on a CPU; 1 where others compute too")
    parser.add_argument("--output", help="file for the JSON; unset: standard output")
    arguments = parser.parse_args()
    names, threads = arguments.models.split(","), arguments.threads
    models = [bench_model(name, arguments.batch, arguments.steps, threads) for name in names]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    text = json.dumps(
        {"device": device, "threads": torch.get_num_threads(), "batch": arguments.batch, "models": models}
    )
    if arguments.output:
        with open(arguments.output, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
