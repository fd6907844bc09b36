"""How a device's memory is divided, on devices that are made up."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest

from octavo.config.options import make_options
from octavo.engine.assemble import build_engine
from octavo.engine.configure import Configured, configure
from octavo.errors import OutOfMemory
from octavo.platforms.platform import Platform
from octavo.worker.memory import GIB, MemoryPlan, plan_memory
from octavo.worker.worker import Worker
from tests.unit.worker.test_rehearsal import LLAMA

TOKEN = 2 * 2 * 2 * 16 * 4  # bytes: layers, keys and values, heads, head size, float32


def on_gpu(total: int, free: int, **options: Any) -> tuple[Configured, Platform]:
    """A configuration as for a GPU of so many bytes, whose arithmetic a CPU does."""
    base = configure(make_options(model=LLAMA, load_format="dummy", dtype="float32", max_num_seqs=4, **options))
    return base, replace(base.platform, shares_memory=False, memory_info=lambda: (free, total))


@pytest.fixture(scope="module")
def worker() -> Worker:
    found, _ = on_gpu(GIB, GIB, num_gpu_blocks_override=8)
    return Worker(found.config, found.platform)


def planned(worker: Worker, total: int, free: int, step_bytes: int, **options: Any) -> MemoryPlan:
    found, platform = on_gpu(total, free, **options)
    return plan_memory(found.config, platform, worker.groups, worker.slabs, 0, step_bytes)


def test_the_share_is_of_the_device_and_pays_for_all_that_is_there(worker: Worker) -> None:
    slab = worker.slabs.slab_bytes
    total, others, steps = 1000 * slab, 300 * slab, 150 * slab
    options = {"gpu_memory_utilization": 0.6, "max_model_len": 128}
    plan = planned(worker, total, total - others, steps, **options)
    useful = 1 + 4 * 128 // 16  # what four requests of 128 tokens can hold, and the null slab
    assert 600 - 300 - 150 > useful == plan.num_slabs
    assert "all that 4 requests of 128 tokens can use" in plan.why
    plan = planned(worker, total, total - others, 280 * slab, **options)
    assert plan.num_slabs == 600 - 300 - 280
    assert plan.why.startswith("60% of the device (") and "for steps" in plan.why


@pytest.mark.parametrize(("asked", "free", "slabs"), [(12, 100, 12), (100, 100, 100)])
def test_an_explicit_size_is_taken_whatever_the_share(worker: Worker, asked: int, free: int, slabs: int) -> None:
    slab = worker.slabs.slab_bytes
    plan = planned(worker, 200 * slab, free * slab, 0, kv_cache_memory_bytes=asked * slab, gpu_memory_utilization=0.01)
    assert plan.num_slabs == slabs and plan.why.endswith("as asked")


def test_more_than_is_free_is_refused(worker: Worker) -> None:
    with pytest.raises(
        OutOfMemory, match=r"kv_cache_memory_bytes asks for 2.00 GiB, but there is 1.00 GiB of 4.00 GiB"
    ):
        planned(worker, 4 * GIB, GIB, 0, kv_cache_memory_bytes=2 * GIB)


def test_where_the_share_is_used_up_it_is_said(worker: Worker) -> None:
    with pytest.raises(
        OutOfMemory, match=r"the cache would have 0.00 GiB \(50% of the device \(1.00 GiB of 4.00 GiB free"
    ):
        planned(worker, 4 * GIB, GIB, 0, gpu_memory_utilization=0.5)


def test_a_length_that_does_not_fit_is_refused_unless_it_may_shrink(caplog: pytest.LogCaptureFixture) -> None:
    """Four blocks of 16, and the null block: a request has 64 tokens at most."""
    found, platform = on_gpu(GIB, GIB, kv_cache_memory_bytes=5 * 16 * TOKEN, max_model_len=128)
    with pytest.raises(OutOfMemory) as refused:
        build_engine(found.config, platform)
    assert "holds one request of 64 tokens, not of max_model_len 128" in str(refused.value)
    assert "lower max_model_len to 64 or raise kv_cache_memory_bytes" in str(refused.value)
    found, platform = on_gpu(GIB, GIB, kv_cache_memory_bytes=5 * 16 * TOKEN, max_model_len="auto")
    with caplog.at_level(logging.WARNING):
        core = build_engine(found.config, platform)
    assert core.max_total_tokens == 64
    assert "requests may have 64 tokens" in caplog.text
