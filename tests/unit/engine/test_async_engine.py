"""One iterator a request: cancellable, at the reader's pace, and nobody else's trouble."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import pytest

from octavo.core.outputs import RequestOutput
from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.engine.async_engine import AsyncEngine
from octavo.errors import EngineDead, InvalidRequest, OctavoError, RequestFailed, ShuttingDown
from tests.unit.engine.scripted import ScriptedCore, byte_level_tokenizer, echo, scripted_frontend

DELTA = RequestOutputKind.DELTA
PLAIN: dict[str, Any] = {"detokenize": False}


@contextmanager
def engine(script: Callable[..., list[int]] = echo, **more: Any) -> Iterator[tuple[AsyncEngine, ScriptedCore]]:
    frontend, core = scripted_frontend(script, **more)
    made = AsyncEngine.from_frontend(frontend)
    core.before_step = lambda: time.sleep(0.0005)  # a step takes time: else steps pile up faster than anybody reads
    try:
        yield made, core
    finally:
        made.shutdown()


async def collect(outputs: AsyncIterator[RequestOutput]) -> list[RequestOutput]:
    return [output async for output in outputs]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def run(task: Awaitable[Any]) -> Any:
    async def main() -> Any:
        async with asyncio.timeout(60):
            return await task

    return asyncio.run(main())


def test_outputs_arrive_and_the_last_is_finished() -> None:
    with engine(tokenizer=byte_level_tokenizer()) as (made, _):
        params = SamplingParams(max_tokens=40, output_kind=DELTA)
        outputs = run(collect(made.generate("hello 你好 ", params, "a")))
    assert [output.finished for output in outputs].count(True) == 1 and outputs[-1].finished
    text = "".join(output.outputs[0].text for output in outputs)
    assert text.startswith("hello 你好 hello 你") and outputs[-1].outputs[0].finish_reason == "length"
    assert sum(len(output.outputs[0].token_ids) for output in outputs) == 40
    assert all(output.request_id == "a" for output in outputs)


def test_many_requests_at_once_do_not_mix() -> None:
    async def main(made: AsyncEngine) -> None:
        params = SamplingParams(max_tokens=20, **PLAIN)
        ends = await asyncio.gather(*(collect(made.generate([i, i + 1], params)) for i in range(50)))
        for i, outputs in enumerate(ends):
            assert outputs[-1].outputs[0].token_ids == [i, i + 1] * 10

    with engine() as (made, _):
        run(main(made))


def test_a_slow_reader_gets_merged_deltas_and_slows_nobody() -> None:
    async def main(made: AsyncEngine, core: ScriptedCore) -> None:
        params = SamplingParams(max_tokens=300, output_kind=DELTA, **PLAIN)
        slow = made.generate([7, 8], params, "slow")
        parts = [(await anext(slow)).outputs[0].token_ids]
        await collect(made.generate([1], params, "fast"))  # as long as the slow one, which nobody reads meanwhile
        await until(lambda: not core.requests)
        parts += [output.outputs[0].token_ids for output in await collect(slow)]
        assert list(chain.from_iterable(parts)) == [7, 8] * 150
        assert len(parts) <= 3

    with engine() as (made, core):
        run(main(made, core))


def test_closing_the_iterator_aborts_the_request() -> None:
    async def main(made: AsyncEngine, core: ScriptedCore) -> None:
        outputs = made.generate([1], SamplingParams(max_tokens=10**6, **PLAIN), "a")
        await anext(outputs)
        await outputs.aclose()
        await until(lambda: not core.requests)
        assert [name.rpartition("-")[0] for name in core.aborted] == ["a"]
        again = await collect(made.generate([1], SamplingParams(max_tokens=1, **PLAIN), "a"))  # the name is free
        assert again[-1].finished

    with engine() as (made, core):
        run(main(made, core))


def test_cancelling_the_task_aborts_all_n_completions() -> None:
    async def main(made: AsyncEngine, core: ScriptedCore) -> None:
        params = SamplingParams(n=3, max_tokens=10**6, **PLAIN)
        task = asyncio.create_task(collect(made.generate([1], params, "a")))
        await until(lambda: len(core.requests) == 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not core.requests)
        assert len(core.aborted) == 3 and made.outputs.num_unfinished == 0

    with engine() as (made, core):
        run(main(made, core))


def test_abort_by_name_ends_the_iterator_normally() -> None:
    async def main(made: AsyncEngine, core: ScriptedCore) -> None:
        outputs = made.generate([1], SamplingParams(max_tokens=10**6, **PLAIN), "a")
        await anext(outputs)
        await made.abort("a")
        await made.abort("nobody")
        rest = await collect(outputs)
        assert rest[-1].finished and rest[-1].outputs[0].finish_reason == "abort"
        await until(lambda: not core.requests)

    with engine() as (made, core):
        run(main(made, core))


def test_a_live_request_id_cannot_be_used_again() -> None:
    async def main(made: AsyncEngine) -> None:
        params = SamplingParams(max_tokens=10**6, **PLAIN)
        outputs = made.generate([1], params, "a")
        await anext(outputs)
        with pytest.raises(InvalidRequest, match="duplicate request id 'a'") as caught:
            await anext(made.generate([1], params, "a"))
        assert caught.value.field == "request_id"
        await anext(outputs)  # unharmed
        await outputs.aclose()

    with engine() as (made, _):
        run(main(made))


def test_a_failure_is_raised_only_to_who_asked() -> None:
    async def main(made: AsyncEngine, core: ScriptedCore) -> None:
        core.failures["bad"] = 3
        params = SamplingParams(max_tokens=20, **PLAIN)
        results = await asyncio.gather(
            collect(made.generate([1], params, "good")),
            collect(made.generate([2], params, "bad")),
            return_exceptions=True,
        )
        assert results[0][-1].outputs[0].token_ids == [1] * 20  # type: ignore[index]
        assert isinstance(results[1], RequestFailed) and results[1].request_id == "bad"
        assert "not finite" in str(results[1])
        assert (await collect(made.generate([3], params)))[-1].finished

    with engine() as (made, core):
        run(main(made, core))


def test_invalid_requests_reach_nobody() -> None:
    async def main(made: AsyncEngine, core: ScriptedCore) -> None:
        with pytest.raises(InvalidRequest, match="prompt_token_ids"):
            await anext(made.generate([10**6], SamplingParams(**PLAIN)))
        core.refused.add("refused")
        with pytest.raises(InvalidRequest, match="is refused"):
            await collect(made.generate([1], SamplingParams(**PLAIN), "refused"))
        assert not core.added and made.outputs.num_unfinished == 0
        assert (await collect(made.generate([3], SamplingParams(**PLAIN))))[-1].finished

    with engine() as (made, core):
        run(main(made, core))


def test_a_stop_string_aborts_the_request_in_the_core() -> None:
    async def main(made: AsyncEngine, core: ScriptedCore) -> None:
        params = SamplingParams(max_tokens=400, stop="stop", output_kind=DELTA)
        outputs = await collect(made.generate("please stop now", params))
        assert "".join(output.outputs[0].text for output in outputs) == "please "
        assert outputs[-1].outputs[0].stop_reason == "stop"
        await until(lambda: not core.requests)

    with engine(tokenizer=byte_level_tokenizer()) as (made, core):
        run(main(made, core))


def test_the_death_of_the_core_ends_every_iterator() -> None:
    async def main(made: AsyncEngine, core: ScriptedCore) -> None:
        params = SamplingParams(max_tokens=10**6, **PLAIN)
        tasks = [asyncio.create_task(collect(made.generate([i], params))) for i in range(3)]
        await until(lambda: len(core.requests) == 3)
        core.before_step = lambda: 1 / 0  # type: ignore[assignment, return-value]
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, EngineDead) and "ZeroDivisionError" in str(result)
        with pytest.raises(EngineDead):
            await anext(made.generate([1], SamplingParams(**PLAIN)))
        assert not made.is_running

    with engine() as (made, core):
        run(main(made, core))
    assert core.num_shutdowns == 1


def test_shutdown_ends_readers_and_the_thread() -> None:
    async def main(made: AsyncEngine, core: ScriptedCore) -> None:
        task = asyncio.create_task(collect(made.generate([1], SamplingParams(max_tokens=10**6, **PLAIN))))
        await until(lambda: bool(core.requests))
        made.shutdown()
        with pytest.raises(EngineDead, match="shut down"):
            await task

    with engine() as (made, core):
        run(main(made, core))
        made.shutdown()
    assert core.num_shutdowns == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "octavo-core"]


def test_one_loop_after_another() -> None:
    params = SamplingParams(max_tokens=5, **PLAIN)

    async def leave_one_open(made: AsyncEngine) -> AsyncIterator[RequestOutput]:
        outputs = made.generate([1], SamplingParams(max_tokens=10**6, **PLAIN), "left")
        await anext(outputs)
        return outputs

    async def blocked(made: AsyncEngine) -> None:
        outputs = await leave_one_open(made)
        error = await asyncio.to_thread(lambda: catch(lambda: asyncio.run(collect(made.generate([1], params)))))
        assert isinstance(error, OctavoError) and "another event loop" in str(error)
        await outputs.aclose()

    with engine() as (made, core):
        for _ in range(2):
            assert len(run(collect(made.generate([1], params)))[-1].outputs[0].token_ids) == 5
        run(blocked(made))
        kept = run(leave_one_open(made))  # asyncio.run closes it, or the next loop clears it away
        assert run(collect(made.generate([1], params, "left")))[-1].finished
        del kept
        run(until(lambda: not core.requests))


def catch(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def test_chat_renders_and_closes() -> None:
    async def main(made: AsyncEngine, core: ScriptedCore) -> None:
        outputs = made.chat([{"role": "user", "content": "the cat"}], SamplingParams(max_tokens=10**6))
        assert (await anext(outputs)).prompt == "hello the cat"
        await outputs.aclose()
        await until(lambda: not core.requests)

    template = "hello {{ messages[-1].content }}"
    with engine(tokenizer=byte_level_tokenizer(), chat_template=template) as (made, core):
        run(main(made, core))


def test_reset_prefix_cache_asks_the_core() -> None:
    with engine() as (made, _):
        assert run(made.reset_prefix_cache()) is True


def test_a_complete_answer_outlives_the_core() -> None:
    async def main(made: AsyncEngine, core: ScriptedCore) -> None:
        outputs = made.generate([1], SamplingParams(max_tokens=50, output_kind=DELTA, **PLAIN))
        first = await anext(outputs)
        await until(lambda: made.outputs.num_unfinished == 0)
        core.before_step = lambda: 1 / 0  # type: ignore[assignment, return-value]
        with pytest.raises(EngineDead):
            await collect(made.generate([2], SamplingParams(**PLAIN)))
        rest = await collect(outputs)
        assert sum(len(output.outputs[0].token_ids) for output in [first, *rest]) == 50

    with engine() as (made, core):
        run(main(made, core))


def test_a_draining_engine_finishes_what_it_has_and_takes_no_more() -> None:
    async def main(made: AsyncEngine) -> None:
        outputs = made.generate([1], SamplingParams(max_tokens=200, output_kind=DELTA, **PLAIN))
        await anext(outputs)
        endless = made.generate([1], SamplingParams(max_tokens=10**6, **PLAIN))
        await anext(endless)
        assert made.state == "ready"
        assert await made.drain(0.05) is False and made.state == "draining"
        with pytest.raises(ShuttingDown):
            await anext(made.generate([1], SamplingParams(**PLAIN)))
        drained = asyncio.create_task(made.drain(10))
        assert (await collect(outputs))[-1].finished
        await endless.aclose()
        assert await drained is True
        with pytest.raises(OctavoError, match="its own event loop"):
            made.shutdown(drain_seconds=1)

    with engine() as (made, _):
        run(main(made))
    assert made.state == "dead" and not made.is_running
