"""What a GPU runs, under Triton's interpreter where there is none: octavo's kernels, attention over the paged cache and
steps at fixed addresses, together, give the tokens that transformers gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from octavo.core.messages import Submit
from octavo.core.params import SamplingParams
from octavo.core.step import StepPlan
from octavo.engine.engine_core import EngineCore
from octavo.ops import dispatch
from octavo.runner.batch import Buckets, StaticBatchBuilder
from octavo.scheduler.shared_prefixes import PrefixLimits, SharedPrefixes
from tests.models.test_equality import NUM_OUTPUT, Reference, Replays, engine_for, reference, run
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


def gpu_engine(reference: Reference, **options: Any) -> tuple[EngineCore, Replays]:
    """With padded steps at fixed addresses that are computed as a captured graph would, two of them in flight."""
    engine = engine_for(
        reference,
        attention_backend="triton_paged",
        num_gpu_blocks_override=600,
        max_num_batched_tokens=BUDGET,
        async_scheduling=True,
        **options,
    )
    dispatch.use(("triton",))
    runner, replays = engine.executor.worker.runner, Replays()
    max_rows = options["max_num_seqs"]
    runner._batches = StaticBatchBuilder(runner.table, 16, Buckets(max_rows, BUDGET), BUDGET)
    runner._graphs = replays
    return engine, replays


@pytest.mark.parametrize("reference", ["gemma3"], indirect=True)  # two groups, windows, norms of heads
def test_greedy_tokens_equal_those_of_transformers(reference: Reference, triton_ops: None) -> None:
    engine, replays = gpu_engine(reference, max_num_seqs=4)
    chosen = [1, 3] if torch.cuda.is_available() else [1, 2]  # the interpreter is slow
    outputs, _, _ = run(engine, [reference.prompts[i] for i in chosen], alone=False)
    assert outputs == [reference.outputs[i] for i in chosen]
    assert replays.num_replays > 0


@pytest.mark.parametrize("reference", ["gemma3"], indirect=True)  # layers with a window read their keys as ever
def test_a_prefix_read_once_for_its_rows_changes_no_token(reference: Reference, triton_ops: None) -> None:
    """Rows with the same beginning decode as a group, while one comes, one is preempted and one is aborted."""
    alike = [i for i, prompt in enumerate(reference.prompts) if prompt[:48] == reference.prompts[-1][:48]][:3]
    assert len(alike) == 3
    engine, replays = gpu_engine(reference, max_num_seqs=4)
    scheduler = engine.scheduler
    assert scheduler._shared_prefixes is not None, "the backend says that it reads shared prefixes"
    scheduler._shared_prefixes = SharedPrefixes(scheduler.cache, PrefixLimits(min_rows=2, min_tokens=16, min_saved=0))
    plans: list[StepPlan] = []
    submit = engine.executor.submit
    engine.executor.submit = lambda plan: plans.append(plan) or submit(plan)  # type: ignore[method-assign, func-returns-value]
    params = SamplingParams(temperature=0, max_tokens=NUM_OUTPUT, ignore_eos=True)
    outputs: dict[str, list[int]] = {}

    def step() -> None:
        for delta in engine.step().deltas:
            assert delta.error is None
            outputs.setdefault(delta.request_id, []).extend(delta.token_ids)

    def grouped() -> set[str]:
        return {row for rows, _ in plans[-1].shared_prefix for row in rows}

    first, second, third = map(str, alike)
    for request_id in (first, second, "gone"):
        engine.add(
            Submit(request_id, reference.prompts[int(request_id) if request_id != "gone" else alike[0]], params, 0.0)
        )
    while grouped() != {first, second, "gone"} if plans else True:
        step()
    engine.add(Submit(third, reference.prompts[alike[2]], params, 1.0))
    step()
    engine.abort(["gone"])
    victim = next(request for request in scheduler.running if request.request_id == second)
    scheduler._preempt(victim)
    while engine.has_work():
        step()
    assert victim.num_preemptions == 1
    assert {row for plan in plans for rows, _ in plan.shared_prefix for row in rows} == {first, second, third, "gone"}
    assert {i: outputs[i] for i in (first, second, third)} == {str(i): reference.outputs[i] for i in alike}
    keys = {key[-1] for key in replays.first}  # the graphs with groups and those without
    assert keys == {True, False} and replays.num_replays > len(replays.first)
