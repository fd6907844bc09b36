"""What a GPU runs, under Triton's interpreter where there is none: octavo's kernels, attention over the paged cache and
steps at fixed addresses, together, give the tokens that transformers gives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from octavo.ops import dispatch
from octavo.runner.batch import Buckets, StaticBatchBuilder
from tests.models.test_equality import Reference, Replays, engine_for, reference, run
from tests.ops import interpreter

__all__ = ["reference"]
pytest.importorskip("triton")
BUDGET = 8


@pytest.fixture
def triton_ops() -> Iterator[None]:
    interpreter.prepare()
    chosen = dispatch.use(("triton",))
    assert chosen["rope_and_write"] == "triton", dispatch.absent()
    with np.errstate(all="ignore"):  # the interpreter computes in numpy, and nobody looks at what is in the padding
        yield
    dispatch.use(())


# two groups, windows, norms of heads; attention and Mamba-2
@pytest.mark.parametrize("reference", ["gemma3", "bamba"], indirect=True)
def test_greedy_tokens_equal_those_of_transformers(reference: Reference, triton_ops: None) -> None:
    engine = engine_for(
        reference,
        attention_backend="triton_paged",
        num_gpu_blocks_override=600,
        max_num_batched_tokens=BUDGET,
        max_num_seqs=4,
        async_scheduling=True,
    )
    dispatch.use(("triton",))
    runner, replays = engine.executor.worker.runner, Replays()
    runner._batches = StaticBatchBuilder(runner.table, 16, Buckets(4, BUDGET), BUDGET)
    runner._graphs = replays
    chosen = [1, 3] if torch.cuda.is_available() else [1, 2]  # the interpreter is slow
    outputs, _, _ = run(engine, [reference.prompts[i] for i in chosen], alone=False)
    assert outputs == [reference.outputs[i] for i in chosen]
    assert replays.num_replays > 0
