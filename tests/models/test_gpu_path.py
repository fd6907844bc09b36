"""What a GPU runs, under Triton's interpreter where there is none: octavo's kernels, attention over the paged cache and
steps at fixed addresses, together, give the tokens that transformers gives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from octavo.core.buckets import Buckets
from octavo.core.messages import Submit
from octavo.core.params import SamplingParams
from octavo.core.step import StepPlan
from octavo.engine.engine_core import EngineCore
from octavo.executor.executor import StepHandle
from octavo.ops import dispatch
from octavo.runner.batch import StaticBatchBuilder
from octavo.scheduler.shared_prefixes import PrefixLimits, SharedPrefixes
from tests.models.test_equality import Reference, Replays, engine_for, reference, run
from tests.ops import interpreter

__all__ = ["reference"]
pytest.importorskip("triton")


@pytest.fixture
def triton_ops() -> Iterator[None]:
    interpreter.prepare()
    chosen = dispatch.use(("triton",))
    assert chosen["rope_and_write"] == "triton", dispatch.absent()
    with np.errstate(all="ignore"):  # the interpreter computes in numpy, and nobody looks at what is in the padding
        yield
    dispatch.use(())


def gpu_engine(reference: Reference, budget: int) -> tuple[EngineCore, Replays]:
    """With padded steps at fixed addresses that are computed as a captured graph would, two of them in flight."""
    max_rows = 4
    engine = engine_for(
        reference,
        attention_backend="triton_paged",
        num_gpu_blocks_override=600,
        max_num_batched_tokens=budget,
        max_num_seqs=max_rows,
        async_scheduling=True,
    )
    dispatch.use(("triton",))
    runner, replays = engine.executor.worker.runner, Replays()
    runner._batches = StaticBatchBuilder(runner.table, 16, Buckets(max_rows, budget), budget)
    runner._graphs = replays
    return engine, replays


@pytest.mark.parametrize("reference", ["gemma3", "bamba"], indirect=True)  # windows; attention and Mamba-2
def test_greedy_tokens_equal_those_of_transformers(reference: Reference, triton_ops: None) -> None:
    engine, replays = gpu_engine(reference, budget=8)
    chosen = [1, 3] if torch.cuda.is_available() else [1, 2]  # the interpreter is slow
    outputs, _, _ = run(engine, [reference.prompts[i] for i in chosen], alone=False)
    assert outputs == [reference.outputs[i] for i in chosen]
    assert replays.num_replays > 0


@pytest.mark.parametrize("reference", ["gemma3"], indirect=True)  # layers with a window read their keys as ever
def test_a_prefix_read_once_for_its_rows_changes_no_token(reference: Reference, triton_ops: None) -> None:
    """Rows with the same beginning decode as a group; one comes later, one is preempted, one is aborted."""
    beginning = reference.prompts[-1][:48]
    alike = [i for i, prompt in enumerate(reference.prompts) if prompt[:48] == beginning][:3]
    assert len(alike) == 3
    engine, replays = gpu_engine(reference, budget=64)
    scheduler = engine.scheduler
    assert scheduler._shared_prefixes is not None, "the backend says that it reads shared prefixes"
    scheduler._shared_prefixes = SharedPrefixes(scheduler.cache, PrefixLimits(min_rows=2, min_tokens=16, min_saved=0))
    groups: list[set[str]] = []  # the rows that were in one, by step
    num_output, outputs = 7, {}
    params = SamplingParams(temperature=0, max_tokens=num_output, ignore_eos=True)
    submit = engine.executor.submit

    def watch(plan: StepPlan) -> StepHandle:
        groups.append({row for rows, _ in plan.shared_prefix for row in rows})
        return submit(plan)

    def step() -> None:
        for delta in engine.step().deltas:
            assert delta.error is None
            outputs.setdefault(delta.request_id, []).extend(delta.token_ids)

    engine.executor.submit = watch  # type: ignore[method-assign]
    first, second, third = map(str, alike)
    for request_id, which in ((first, alike[0]), (second, alike[1]), ("gone", alike[0])):
        engine.add(Submit(request_id, reference.prompts[which], params, 0.0))
    step()
    while groups[-1] != {first, second, "gone"}:
        step()
    engine.add(Submit(third, reference.prompts[alike[2]], params, 1.0))
    step()
    engine.abort(["gone"])
    victim = scheduler.requests[second]
    scheduler._preempt(victim)
    while engine.has_work():
        step()
    assert victim.num_preemptions == 1 and any(third in rows for rows in groups)
    assert {i: outputs[str(i)] for i in alike} == {i: reference.outputs[i][:num_output] for i in alike}
    with_groups = [key[-1] for key in replays.first]  # graphs that are made for groups, and graphs that are not
    assert 0 < sum(with_groups) < min(len(with_groups), sum(map(bool, groups)))
