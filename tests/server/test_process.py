"""The core in its own process: it starts, dies, comes back and goes away, and nobody is left behind. What it computes
is of no interest here, so that most tests do without (light.py)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from octavo.config.options import Options, make_options
from octavo.core.messages import CoreStatus
from octavo.core.outputs import RequestOutput
from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.engine import control, launch
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.configure import configure
from octavo.engine.control import Child
from octavo.engine.launch import MAX_FAILED_STARTS, FrontendGroup, Supervisor
from octavo.errors import (
    EngineDead,
    EngineRestarting,
    EngineStarting,
    ModelNotFound,
    OutOfMemory,
    Overloaded,
    RequestFailed,
    ShuttingDown,
)
from tests.server import light

ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
OPTIONS: dict[str, Any] = {
    "load_format": "dummy",
    "dtype": "float32",
    "kv_cache_memory_bytes": "4MiB",
    "max_num_seqs": 2,
    "max_num_queued_reqs": 6,
    "threads": 1,
}
RAISES, NAN, EXITS, HANGS = 100, 101, 102, 103
STEP_SECONDS = 0.004


@pytest.fixture(scope="module", autouse=True)
def _faults_and_a_light_core() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_TEST_FAULTS", f"raise={RAISES},nan={NAN},exit={EXITS},hang={HANGS},delay={STEP_SECONDS}")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(launch, "start_child", light.start_child)
        patch.setattr(launch, "FIRST_DELAY", 0.05)
        yield


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No process, directory, socket or shared memory stays behind, in a directory that other tests do not use."""
    tmp_path_factory.getbasetemp()  # pytest's own stays where it is
    before = leavings()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        patch.setattr(tempfile, "tempdir", folder)
        patch.setenv("TMPDIR", folder)
        yield
        eventually(lambda: leavings() <= before and not private_directories())


def leavings() -> set[str]:
    mine = {f"process {child.pid}" for child in psutil.Process().children(recursive=True)}
    shared = Path("/dev/shm")
    return mine | {str(path) for path in (shared.iterdir() if shared.is_dir() else ()) if _is_ours(path.name)}


def _is_ours(name: str) -> bool:
    """As Python, torch and we call shared memory; a browser that another test drives has its own."""
    return name.startswith(("psm_", "torch_", "octavo"))


def private_directories() -> set[str]:
    return {str(path) for path in Path(tempfile.gettempdir()).glob("octavo-*")}


@pytest.fixture(scope="module")
def engine() -> Iterator[AsyncEngine]:
    started = time.monotonic()
    made = AsyncEngine.launch(options(), TINY)
    assert time.monotonic() - started < 0.5 and made.state == "starting"
    yield made
    made.shutdown()
    assert made.state == "dead"


def options(**more: Any) -> Options:
    return make_options({**OPTIONS, **more})


def params(max_tokens: int, **more: Any) -> SamplingParams:
    """Greedy where n is 1: what the model says is the same each time, and never one of the ids that fail."""
    more = {"temperature": 0.0, **more} if more.get("n", 1) == 1 else more
    return SamplingParams(
        max_tokens=max_tokens, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA, **more
    )


def run(task: Awaitable[None], seconds: float = 30) -> None:
    async def main() -> None:
        async with asyncio.timeout(seconds):
            await task

    asyncio.run(main())


async def collect(outputs: AsyncIterator[RequestOutput]) -> list[int]:
    return [token_id async for output in outputs for token_id in output.outputs[0].token_ids]


async def outcome(engine: AsyncEngine, max_tokens: int, prompt: list[int] | None = None) -> int | str:
    """How many tokens came, or the name of the error."""
    try:
        return len(await collect(engine.generate(prompt or [1, 2, 3], params(max_tokens))))
    except Exception as error:
        return type(error).__name__


async def begin(engine: AsyncEngine, max_tokens: int) -> AsyncIterator[RequestOutput]:
    """A request that runs."""
    outputs = engine.generate([1, 2, 3], params(max_tokens))
    await anext(outputs)
    return outputs


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> float:
    """The seconds that it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "it never became true"
        time.sleep(0.01)
    return time.monotonic() - started


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pid_of(engine: AsyncEngine) -> int:
    pid = engine.status.pid
    assert pid is not None
    return pid


# ---- one engine through all of this


def test_requests_wait_while_the_core_loads(engine: AsyncEngine) -> None:
    async def main() -> None:
        with pytest.raises(EngineStarting):
            await engine.core_stats()
        early = asyncio.create_task(collect(engine.generate([1, 2, 3], params(5))))
        await engine.until_ready()
        assert engine.state == "ready" and engine.status.facts is not None
        first = await early
        assert len(first) == 5 and first == await collect(engine.generate([1, 2, 3], params(5)))
        assert not {RAISES, NAN, EXITS} & set(await collect(engine.generate([1, 2, 3], params(200))))
        assert engine.inputs.limits.max_model_len == engine.status.facts.max_total_tokens
        assert await engine.reset_prefix_cache() is True

    run(main())


def test_an_abort_frees_blocks_within_a_step(engine: AsyncEngine) -> None:
    async def main() -> None:
        running = [await begin(engine, 4000) for _ in range(2)]
        waiting = asyncio.create_task(collect(engine.generate([4], params(4000))))
        while (await engine.core_stats()).num_waiting != 1:
            await asyncio.sleep(0)
        stats = await engine.core_stats()
        assert stats.num_running == 2 and stats.num_used_blocks >= 2 and stats.frontends == [0]
        for outputs in running:
            await outputs.aclose()  # type: ignore[attr-defined]
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        stats = await engine.core_stats()  # answered between the next two steps
        assert (stats.num_running, stats.num_waiting, stats.num_used_blocks) == (0, 0, 0)

    run(main())


def test_a_request_that_fails_in_the_forward_harms_nobody(engine: AsyncEngine) -> None:
    async def main() -> None:
        pid = pid_of(engine)
        good = asyncio.create_task(outcome(engine, 60))
        for token_id in (RAISES, NAN):
            with pytest.raises(RequestFailed):
                await collect(engine.generate([1, token_id], params(5)))
        assert await good == 60 and pid_of(engine) == pid
        assert (await engine.core_stats()).num_used_blocks == 0

    run(main())


def test_too_much_at_once_is_refused_at_once(engine: AsyncEngine) -> None:
    async def main() -> None:
        running = [await begin(engine, 4000) for _ in range(2)]
        waiting = [asyncio.create_task(outcome(engine, 3)) for _ in range(5)]
        await until(lambda: engine.admission.num_requests == 5)
        started = time.monotonic()
        with pytest.raises(Overloaded):
            await anext(engine.generate([1], params(5, n=2)))
        assert time.monotonic() - started < 0.1
        waiting.append(asyncio.create_task(outcome(engine, 3)))  # one more has room
        for outputs in running:
            await outputs.aclose()  # type: ignore[attr-defined]
        assert await asyncio.gather(*waiting) == [3] * 6
        assert engine.admission.num_requests == 0

    run(main())


@pytest.mark.parametrize("how", ["SIGKILL", "in the forward"])
def test_the_core_dies(engine: AsyncEngine, how: str) -> None:
    async def main() -> None:
        await engine.until_ready()
        states: list[CoreStatus] = []
        assert engine._source is not None
        unsubscribe = engine._source.subscribe(states.append)
        old = pid_of(engine)
        streams = [await begin(engine, 3000) for _ in range(2)]
        running = [asyncio.create_task(collect(stream)) for stream in streams]
        prompts = [[1, 2, EXITS if how == "in the forward" and i == 0 else 3] for i in range(4)]
        waiting = [asyncio.create_task(collect(engine.generate(prompt, params(20)))) for prompt in prompts]
        await until(lambda: engine.admission.num_requests == 4)
        if how == "SIGKILL":
            os.kill(old, signal.SIGKILL)
        else:  # the first of those that wait is why, as soon as it gets a row
            running += [waiting.pop(0)]
            running[0].cancel()
        killed = time.monotonic()
        await until(lambda: engine.state != "ready")
        if how == "SIGKILL":
            assert time.monotonic() - killed < 1.0
        assert engine.state == "restarting"
        ends = await asyncio.gather(*running, return_exceptions=True)
        assert engine.state == "restarting", "who was running is told at once, not after the restart"
        for end in ends:
            assert isinstance(end, EngineRestarting | asyncio.CancelledError)
        assert [len(token_ids) for token_ids in await asyncio.gather(*waiting)] == [20] * len(waiting)
        assert engine.state == "ready" and pid_of(engine) != old and not is_running(old)
        stats = await engine.core_stats()
        assert (stats.num_running, stats.num_waiting, stats.num_used_blocks) == (0, 0, 0)
        unsubscribe()
        assert [status.state for status in states if not status.pid or status.state == "ready"][-2:] == [
            "restarting", "ready"]  # fmt: skip

    run(main())


def test_a_core_that_hangs_is_replaced(engine: AsyncEngine) -> None:
    async def main() -> None:
        await engine.until_ready()
        supervisor = engine._source
        assert isinstance(supervisor, Supervisor) and supervisor.step_timeout == 300
        old = pid_of(engine)
        supervisor.step_timeout = 1.5
        guilty = asyncio.create_task(collect(engine.generate([1, HANGS], params(5))))
        await until(lambda: len(engine._client._begun) == 1)
        late = asyncio.create_task(outcome(engine, 7))
        with pytest.raises(EngineRestarting, match=r"a step took more than 1\.5 s"):
            await guilty
        supervisor.step_timeout = 300
        assert await late == 7 and pid_of(engine) != old and not is_running(old)

    run(main())


def test_sigterm_to_the_core_drains_it(engine: AsyncEngine) -> None:
    async def main() -> None:
        old = pid_of(engine)
        running = asyncio.create_task(collect(await begin(engine, 150)))
        os.kill(old, signal.SIGTERM)
        await asyncio.sleep(0.1)
        late = asyncio.create_task(outcome(engine, 7))
        assert len(await running) == 149
        assert await late == 7 and pid_of(engine) != old

    run(main())


def test_a_draining_engine_finishes_what_it_has(engine: AsyncEngine) -> None:
    async def main() -> None:
        running = asyncio.create_task(collect(await begin(engine, 100)))
        waiting = [asyncio.create_task(outcome(engine, 10)) for _ in range(3)]
        await until(lambda: engine.admission.num_requests > 0)
        drained = asyncio.create_task(engine.drain(20))
        await asyncio.sleep(0)
        assert engine.state == "draining"
        with pytest.raises(ShuttingDown):
            await anext(engine.generate([1], params(5)))
        assert await drained is True
        assert len(await running) == 99 and await asyncio.gather(*waiting) == [10] * 3
        left = asyncio.create_task(collect(engine.generate([1], params(5))))
        assert isinstance((await asyncio.gather(left, return_exceptions=True))[0], ShuttingDown)

    run(main())
    pid = pid_of(engine)
    engine.shutdown()
    assert not is_running(pid) and engine.state == "dead"


# ---- starts that fail


def test_a_model_that_does_not_fit_is_dead_at_once_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "start_child", control.start_child)  # the real one

    async def main() -> None:
        engine = AsyncEngine.launch(options(kv_cache_memory_bytes="16KiB", max_model_len=4096), TINY)
        try:
            waiting = asyncio.create_task(collect(engine.generate([1], params(5))))
            with pytest.raises(OutOfMemory, match="max_model_len"):
                await engine.until_ready()
            assert engine.state == "dead" and "max_model_len" in engine.status.reason
            for task in (waiting, collect(engine.generate([1], params(5)))):
                with pytest.raises(EngineDead, match="max_model_len"):
                    await task
        finally:
            engine.shutdown()

    run(main())


def test_a_model_that_does_not_exist() -> None:
    async def main() -> None:
        engine = AsyncEngine.launch(make_options(model="/no/such/model"))
        try:
            with pytest.raises(ModelNotFound):
                await engine.until_ready()
            with pytest.raises(EngineDead, match="/no/such/model"):
                await anext(engine.generate([1], params(5)))
            assert engine.state == "dead"
        finally:
            engine.shutdown()

    run(main())


def test_a_core_that_never_starts_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []
    start = launch.start_child

    def start_broken(module: str, arguments: Any = (), pass_fds: Any = ()) -> Child:
        child = start("this", arguments, pass_fds)  # a module that does nothing of what it should
        pids.append(child.pid)
        return child

    monkeypatch.setattr(launch, "start_child", start_broken)
    monkeypatch.setattr(launch, "FIRST_DELAY", 0.01)
    supervisor = Supervisor()
    try:
        supervisor.configure(configure(options(), TINY).config)
        eventually(lambda: supervisor.status.state == "dead", 15)
        assert len(pids) == MAX_FAILED_STARTS and "exit status 0" in supervisor.status.reason
        assert isinstance(supervisor.failure, EngineDead)
    finally:
        supervisor.stop()


# ---- programs that end, one way or another


PROGRAM = """
    import asyncio, os, sys, time
    from octavo.config.options import make_options
    from octavo.core.params import SamplingParams
    from octavo.engine.async_engine import AsyncEngine

    if {is_light}:
        from octavo.engine import launch
        from tests.server import light
        launch.start_child = light.start_child

    async def main():
        engine = AsyncEngine.launch(make_options({options!r}), {model!r})
        outputs = engine.generate([1, 2], SamplingParams(max_tokens=4000, ignore_eos=True, detokenize=False))
        await anext(outputs)
        print(engine.status.pid, sorted({{"torch", "transformers"}} & set(sys.modules)), flush=True)
        {then}

    asyncio.run(main())
"""


def program(then: str, is_light: bool) -> tuple[subprocess.Popen[str], int, str]:
    """A program with a running request: (it, its core's process, which of the forbidden modules it has loaded)."""
    code = textwrap.dedent(PROGRAM).format(options=OPTIONS, model=TINY, then=then, is_light=is_light)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid, _, modules = process.stdout.readline().strip().partition(" ")
    return process, int(pid), modules


def test_a_program_that_just_ends_leaves_nothing_and_its_front_end_never_imports_torch() -> None:
    before = private_directories()
    process, core, modules = program("return", is_light=False)
    with process:
        assert process.wait(10) == 0
    assert modules == "[]"
    assert not is_running(core) and private_directories() <= before


def test_the_core_goes_with_its_parent_and_takes_its_directory_along() -> None:
    before = private_directories()
    process, core, _ = program("await asyncio.sleep(60)", is_light=True)
    with process:
        process.kill()
        assert eventually(lambda: not is_running(core)) < 2.0
    assert private_directories() <= before


# ---- several front ends


def test_several_front_ends_share_a_core(tmp_path: Path) -> None:
    def notes(index: int) -> Mapping[int, list[str]]:
        """By process, what a front end wrote."""
        return {int(path.name.split("-")[1]): path.read_text().split() for path in tmp_path.glob(f"{index}-*")}

    def stream(index: int, pid: int) -> bool:
        return notes(index).get(pid, [])[-1:] == ["streams"]

    supervisor = Supervisor()
    try:
        config = configure(options(max_num_seqs=8), TINY).config
        supervisor.configure(config)
        group = FrontendGroup(supervisor, config, "tests.server.frontend_child", 2, str(tmp_path).encode())
        one, two = group.pids
        eventually(lambda: stream(0, one) and stream(1, two), 20)
        assert notes(0)[one][0] == "ready", "the front end has imported torch or transformers"

        os.kill(two, signal.SIGKILL)  # its request ends, another front end comes, the first one goes on
        eventually(lambda: group.pids[1] != two and stream(1, group.pids[1]), 20)
        assert notes(0)[one] == ["ready", "streams"]

        core = supervisor.status.pid
        assert core is not None
        os.kill(core, signal.SIGKILL)  # everybody hears of it
        eventually(lambda: "EngineRestarting" in notes(0)[one] and "EngineRestarting" in notes(1)[group.pids[1]], 1.0)
        eventually(lambda: stream(0, one) and stream(1, group.pids[1]), 20)
        pids = group.pids
        os.kill(pids[0], signal.SIGSTOP)  # it cannot end by itself
        ending = time.monotonic()
        group.stop(60, lambda: time.monotonic() > ending + 0.5)
        assert time.monotonic() - ending < 10 and not any(map(is_running, pids))
    finally:
        supervisor.stop()
