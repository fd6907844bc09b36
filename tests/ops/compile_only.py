"""Octavo's kernels for a GPU that is not there: they are compiled to machine code, and launching does nothing.

    python -m tests.ops.compile_only 90

Rehearses steps of small models as a first start does, then runs the same steps as if they were launched. Prints, as
JSON, what was compiled ahead and what was compiled only when it was launched.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LIMITS = {80: (108, 166_912), 86: (84, 101_376), 90: (132, 232_448), 120: (188, 101_376)}  # processors, shared bytes


class Launcher:
    def __init__(self, source: Any, metadata: Any) -> None:
        self.launch_pdl = metadata.launch_pdl

    def __call__(self, *args: Any) -> None:
        return None


class Utils:
    """What Triton asks a driver for when it loads a kernel."""

    def __init__(self, shared: int) -> None:
        self._shared = shared

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self._shared}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[Any, ...]:
        assert kernel.startswith(b"\x7fELF")
        return object(), object(), 0, 0, 1024


class Driver:
    def __init__(self, arch: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.launcher_cls, self.utils = Launcher, Utils(LIMITS[arch][1])
        self._target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def gpu(arch: int) -> Iterator[None]:
    """Triton compiles for it, and octavo's kernels are imported as if it were there. Tensors are the host's."""
    import torch
    from triton.runtime import driver

    driver.set_active(Driver(arch))
    present, capability = torch.cuda.is_available, torch.cuda.get_device_capability
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_capability = lambda device=None: divmod(arch, 10)
    try:
        from octavo.attention import triton_paged
        from octavo.ops.triton import attention_work, chain

        limits = attention_work.DeviceLimits(*LIMITS[arch])
        triton_paged.device_limits = lambda device: limits
        chain.launch_options()
        yield
    finally:
        torch.cuda.is_available, torch.cuda.get_device_capability = present, capability


MODELS: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "head_dim": 128},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 64},
    "gemma3": {"architectures": ["Gemma3ForCausalLM"], "head_dim": 256, "sliding_window": 32},
}
SMALL = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "layer_types": ["sliding_attention", "full_attention"],
}


def compiled(name: str, dtype: str) -> tuple[list[str], list[str], list[str]]:
    """Kernels compiled ahead, kernels compiled by the steps after it, failures."""
    import torch
    import triton

    from octavo.config.options import make_options
    from octavo.engine.configure import configure
    from octavo.ops import dispatch
    from octavo.ops.ahead import Rehearsal
    from octavo.runner.batch import Buckets, StaticBatchBuilder
    from octavo.worker.rehearsal import plans, shapes
    from octavo.worker.worker import Worker

    options: dict[str, Any] = {
        "load_format": "dummy",
        "dtype": dtype,
        "attention_backend": "triton_paged",
        "max_num_seqs": 64,
    }
    found = configure(
        make_options({**options, "max_num_batched_tokens": 512, "num_gpu_blocks_override": 8}),
        {**SMALL, **MODELS[name]},
    )
    worker = Worker(found.config, found.platform)
    dispatch.use(("triton", "torch"))
    runner = worker._make_runner(worker.cache, has_graphs=False)
    scheduler = found.config.scheduler
    buckets = Buckets(scheduler.max_num_seqs, scheduler.max_num_batched_tokens)
    runner._batches = StaticBatchBuilder(runner.table, 16, buckets, scheduler.max_num_batched_tokens)
    names: list[str] = []
    triton.knobs.compilation.listener = lambda src, cache_hit, **_: names.append(src.name)
    first, more = shapes(scheduler)
    with Rehearsal(torch.device("cpu"), num_threads=2) as rehearsal:
        for plan in plans(runner, [*first, *more], scheduler.max_model_len):
            runner.finish(runner.forward(plan))
        runner.reset()
    rehearsal.wait()
    ahead = list(names)
    names.clear()
    for plan in plans(runner, [*first, *more], scheduler.max_model_len):
        runner.finish(runner.forward(plan))
    dispatch.use(())
    return ahead, names, rehearsal.failures


def main(arguments: list[str]) -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        with gpu(int(arguments[0])):
            for name in arguments[1:] or MODELS:
                ahead, late, failures = compiled(name, "bfloat16")
                report[name] = {"ahead": ahead, "late": late, "failures": failures}
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
