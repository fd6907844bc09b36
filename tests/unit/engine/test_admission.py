"""Limits on what waits: refused at once, and all or nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo.config.engine_config import AdmissionConfig
from octavo.core.messages import Submit
from octavo.core.params import SamplingParams
from octavo.engine.admission import Admission
from octavo.engine.async_engine import AsyncEngine
from octavo.errors import Overloaded, Unavailable
from octavo.telemetry.metrics import Metrics
from octavo.telemetry.recorder import Recorder
from tests.unit.engine.scripted import echo, scripted_frontend

PARAMS = SamplingParams()


def submits(name: str, count: int = 1, num_tokens: int = 4) -> list[Submit]:
    return [Submit(f"{i}_{name}", [1] * num_tokens, PARAMS, 0.0) for i in range(count)]


def test_requests_are_counted_by_completion_all_or_none() -> None:
    admission = Admission(AdmissionConfig(max_queued_requests=5))
    admission.enter(submits("a", 3))
    with pytest.raises(Overloaded, match="3 requests are waiting, and max_num_queued_reqs allows 5: 3 more") as caught:
        admission.enter(submits("b", 3))
    assert caught.value.retry_after is not None and isinstance(caught.value, Unavailable)
    assert admission.num_requests == 3
    admission.enter(submits("c", 2))
    admission.leave(["0_a", "nobody", "0_a"])
    assert admission.num_requests == 4
    admission.enter(submits("d", 1))


def test_tokens_are_counted() -> None:
    admission = Admission(AdmissionConfig(max_queued_tokens=10))
    admission.enter(submits("a", 2))
    with pytest.raises(Overloaded, match="8 prompt tokens are waiting, and max_num_queued_tokens allows 10: 4 more"):
        admission.enter(submits("b"))
    assert (admission.num_requests, admission.num_tokens) == (2, 8)
    admission.leave(["1_a"])
    admission.enter(submits("b"))
    assert admission.num_tokens == 8


def test_front_ends_share_the_limits() -> None:
    admission = Admission(AdmissionConfig(max_queued_requests=10, max_queued_tokens=3), share=4)
    assert (admission.max_requests, admission.max_tokens) == (2, 1)


def test_no_limit_by_default() -> None:
    admission = Admission(AdmissionConfig())
    admission.enter(submits("a", 10_000))
    assert admission.num_requests == 10_000


def test_the_engine_refuses_before_anything_is_queued_and_forgets_what_is_over() -> None:
    plain: dict[str, Any] = {"detokenize": False}

    async def main(engine: AsyncEngine, core: Any) -> None:
        engine.admission = Admission(AdmissionConfig(max_queued_requests=2))
        metrics = Metrics("m")
        engine.record_with(Recorder(metrics))
        engine._core.send(lambda client: asyncio.run(asyncio.sleep(0.1)))  # a long step: nothing is begun meanwhile
        first = asyncio.create_task(anext(engine.generate([1], SamplingParams(max_tokens=500, **plain), "a")))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await anext(engine.generate([1], SamplingParams(n=2, **plain), "b"))
        assert len(engine.outputs._completions) == 1 and "b" not in engine._readers
        assert 'admission_rejections_total{engine="0",model_name="m",reason="max_num_queued_reqs"} 1.0' in (
            metrics.render()[0].decode()
        )
        second = asyncio.create_task(anext(engine.generate([1], SamplingParams(max_tokens=500, **plain), "c")))
        await asyncio.sleep(0)
        assert engine.admission.num_requests == 2
        await first
        await second
        assert engine.admission.num_requests == 0  # they run: nothing waits
        left = engine.generate([1], SamplingParams(max_tokens=500, **plain), "d")
        task = asyncio.create_task(anext(left))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert engine.admission.num_requests == 0
        assert not [submit for submit in core.added if submit.request_id.startswith("b")]

    frontend, core = scripted_frontend(echo)
    engine = AsyncEngine.from_frontend(frontend)
    try:
        asyncio.run(main(engine, core))
    finally:
        engine.shutdown()
