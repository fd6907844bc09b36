"""A worker gives back what it took."""

from __future__ import annotations

import gc

import torch

from octavo.cli.bench.workloads import SHAPES
from octavo.core.params import SamplingParams
from octavo.llm import LLM


def test_an_engine_that_was_shut_down_holds_neither_cache_nor_weights() -> None:
    llm = LLM(SHAPES["tiny"], load_format="dummy", num_gpu_blocks_override=300, max_model_len=64, threads=1)
    llm.generate([[1, 2, 3]], SamplingParams(max_tokens=2, detokenize=False), use_tqdm=False)
    worker = llm.frontend.client.core.executor.worker  # type: ignore[attr-defined]
    taken = [parameter.data_ptr() for parameter in worker.model.parameters()]
    taken.append(next(iter(next(iter(worker.cache.parts.values())).values())).untyped_storage().data_ptr())
    assert worker.cache.num_bytes > 0
    for _ in range(2):
        llm.shutdown()
        worker.release()
    gc.collect()
    held = [
        one
        for one in gc.get_objects()
        if issubclass(type(one), torch.Tensor) and one.untyped_storage().data_ptr() in taken
    ]
    assert not [one for one in held if one.numel()], "something still holds the memory"
    assert worker.cache.num_bytes == 0 and sum(one.numel() for one in worker.model.parameters()) == 0
