"""The live view's events: what they sum up to, who pays for them, and what slow or lost listeners cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import msgspec
import pytest

from octavo.core.messages import StepShare, StepStats
from octavo.core.params import SamplingParams
from octavo.telemetry.live import LEASE, MAX_BACKLOG, MAX_BARS, MAX_PARTS, LiveView
from tests.simulation import make_engine, submit
from tests.unit.server.simulated import simulated_engine


def run(task: Awaitable[Any]) -> Any:
    async def main() -> Any:
        async with asyncio.timeout(10):
            return await task

    return asyncio.run(main())


async def read(events: AsyncIterator[bytes]) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(await anext(events))
    return decoded


def step(*shares: tuple[str, int, int, bool], **more: Any) -> StepStats:
    made = [StepShare(*share) for share in shares]
    return StepStats(len(made), 0, sum(share.num_tokens for share in made), shares=made, step_seconds=0.002, **more)


def test_events_sum_up_steps_and_number_requests() -> None:
    async def main() -> None:
        view = LiveView("m", 512, 16)
        view.step(step(("early", 5, 0, True)))  # nobody listens
        events = view.listen()
        assert await read(events) == {"type": "hello", "model": "m", "budget": 512, "max_requests": 16}
        assert (await read(events))["steps"] == 0
        view.step(step(("a", 30, 16, True), num_prefill_tokens=30, num_prefix_queries=46, num_prefix_hits=16))
        view.step(step(("a", 1, 0, False), ("b", 20, 0, True), num_generated_tokens=1))
        tick = await read(events)
        assert tick["steps"] == 2 and tick["prefill"] == 30 and tick["generated"] == 1
        assert tick["queries"] == 46 and tick["hits"] == 16 and tick["step_ms"] == 2.0
        assert [bar["parts"] for bar in tick["bars"]] == [[[0, 30, 0, 16]], [[0, 0, 1, 0], [1, 20, 0, 0]]]
        view.step(step(("b", 1, 0, False)))
        assert (await read(events))["bars"][0]["parts"] == [[1, 0, 1, 0]]  # the same number as before
        await events.aclose()  # type: ignore[attr-defined]
        assert view.num_listeners == 0

    run(main())


def test_many_steps_and_many_requests_stay_small() -> None:
    view = LiveView("m", 512, 4096)
    steps = [step(*((str(i), 1 + i, 0, True) for i in range(500))) for _ in range(1000)]
    tick = view._tick(steps, 1.0)
    assert len(tick.bars) == MAX_BARS and sum(bar.steps for bar in tick.bars) == tick.steps == 1000
    bar = tick.bars[0]
    assert len(bar.parts) == MAX_PARTS and bar.others is not None and bar.others[0] == 500 - MAX_PARTS
    total = bar.others[1] + sum(part[1] for part in bar.parts)
    assert total == bar.steps * sum(range(1, 501))  # nothing is lost
    assert len(msgspec.json.encode(tick)) < 10_000


def test_without_shares_a_bar_still_has_its_tokens() -> None:
    tick = LiveView("m", 512, 16)._tick([StepStats(2, 0, 12, 10, 32)], 0.1)
    assert tick.bars[0].parts == [] and tick.bars[0].others == (1, 10, 2, 32)


def test_a_slow_listener_misses_events_and_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.telemetry.live.TICK", 0.005)

    async def main() -> None:
        view = LiveView("m", 512, 16)
        slow, quick = view.listen(), view.listen()
        await read(slow)
        await read(quick)
        for _ in range(MAX_BACKLOG + 5):
            view.step(step(("a", 1, 0, False)))
            await read(quick)
        assert max(len(each._events) for each in view._listeners) == MAX_BACKLOG
        await slow.aclose()  # type: ignore[attr-defined]
        assert view.num_listeners == 1 and not view.is_full
        view.close()
        rest = [event async for event in quick]
        assert len(rest) <= 2 and view.num_listeners == 0

    run(main())


def test_the_core_is_asked_while_somebody_listens_and_no_longer() -> None:
    async def main() -> None:
        view = LiveView("m", 512, 16)
        asked: list[float] = []
        view.watch = asked.append
        events = view.listen()
        await read(events)
        await read(events)
        await asyncio.sleep(0.05)
        assert asked == [LEASE]
        await events.aclose()  # type: ignore[attr-defined]
        ticker = view._ticker
        assert ticker is not None
        await ticker  # ends by itself
        view.step(step(("a", 1, 0, False)))
        assert not view._steps

    run(main())


def test_shares_add_up_to_the_plan_and_end_with_the_lease() -> None:
    engine = make_engine(budget=64)
    prompt = [1 + i % 40 for i in range(100)]
    submit(engine, "first", prompt, max_tokens=30)
    assert engine.step().stats.shares is None  # type: ignore[union-attr]
    engine.watch(60.0)
    seen: dict[str, list[int]] = {"first": [0, 0, 0], "second": [0, 0, 0]}
    for at in range(60):
        if at == 5:
            submit(engine, "second", prompt, max_tokens=3)
        if not engine.has_work():
            break
        stats = engine.step().stats
        assert stats is not None
        if not stats.num_scheduled_tokens:
            continue
        assert stats.shares is not None
        assert sum(share.num_tokens for share in stats.shares) == stats.num_scheduled_tokens
        assert sum(share.num_tokens for share in stats.shares if share.is_prefill) == stats.num_prefill_tokens
        assert sum(share.num_cached_tokens for share in stats.shares) == stats.num_cached_tokens
        for share in stats.shares:
            tokens = seen[share.request_id]
            tokens[0 if share.is_prefill else 1] += share.num_tokens
            tokens[2] += share.num_cached_tokens
    assert seen["first"][0] == 100 - 64 and seen["second"] == [100 - 96, seen["second"][1], 96]
    engine._watched_until = 0.0
    submit(engine, "third", prompt, max_tokens=2)
    assert engine.step().stats.shares is None  # type: ignore[union-attr]


def test_an_engine_tells_its_listeners_and_forgets_those_that_leave() -> None:
    engine = simulated_engine(0.002)
    live = engine.recorder.live  # type: ignore[union-attr]
    assert live is not None

    async def main() -> None:
        events = live.listen()
        await read(events)
        params = SamplingParams(max_tokens=200, ignore_eos=True, detokenize=False)
        outputs = engine.generate({"prompt_token_ids": list(range(1, 41))}, params)
        await anext(outputs)
        bars: list[Any] = []
        while not any(bar["parts"] for bar in bars):
            bars += (await read(events)).get("bars", [])
        assert engine.frontend.client.watched  # type: ignore[attr-defined]
        await outputs.aclose()  # type: ignore[attr-defined]
        while (await read(events))["running"]:  # the abort is seen, though no step follows it
            pass
        await events.aclose()  # type: ignore[attr-defined]

    try:
        run(main())
    finally:
        engine.shutdown()
    assert live.num_listeners == 0
