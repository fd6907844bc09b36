"""Processes of compare_cpu.py: repetitions end in time, a failed workload costs itself, a failed process a line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import compare_cpu
from benchmarks.comparison import BY_KEY, Machine
from benchmarks.make_checkpoints import Models
from benchmarks.peers import servers
from benchmarks.peers.session import Job, Prompts, Work, measure, read_job

ENGINE = """
    import os, sys, time
    sys.path.insert(0, {folder!r})
    from session import run

    class Fake:
        version, settings = "fake 1.0", {{"threads": 2}}
        def __init__(self, job):
            print("noise on stdout", flush=True)
            self.model = job.model
        def prepare(self, work):
            if work.name == "prefill":
                raise ValueError("no room")
        def generate(self, prompts, outputs, shared):
            if self.model == "hangs" and len(outputs) > 1:
                time.sleep(60)
            if self.model == "dies" and len(outputs) > 1:
                print("out of memory", file=sys.stderr, flush=True)
                raise SystemExit(9)
            if self.model.startswith("/"):
                began = time.time()
                time.sleep(0.05)
                with open(self.model, "a") as file:
                    print(os.getpid(), began, time.time(), len(outputs), file=file)
            return list(outputs)

    if __name__ == "__main__":
        run(Fake)
"""


class Clock:
    """An engine that takes a second for each token it generates, and its clock."""

    version, settings = "fake", {}

    def __init__(self, short: int = 0) -> None:
        self.now, self.short, self.calls = 0.0, short, 0

    def prepare(self, work: Work) -> None:
        self.now += 1000

    def generate(self, prompts: Prompts, outputs: list[int], shared: int) -> list[int]:
        self.now += sum(outputs)
        self.calls += 1
        return [output - self.short for output in outputs]


def work(name: str = "batch", **changes: object) -> Work:
    settings: dict = {
        "warm_up": ([[1], [2]], [3, 3]),
        "repetitions": [[[1, 2], [3]]] * 5,
        "outputs": [4, 6],
        "limit_seconds": 25.0,
    }
    return Work(name, **{**settings, **changes})


def test_repetitions_are_timed_without_what_comes_before_and_end_in_time() -> None:
    clock = Clock()
    assert measure(clock, work(), lambda: clock.now) == [10.0, 10.0, 10.0]  # begun at 0, 10, 20; not at 30
    assert clock.calls == 4
    assert measure(Clock(), work(limit_seconds=1e9), lambda: 0.0) == [0.0] * 5


def test_a_missing_token_is_no_figure() -> None:
    with pytest.raises(ValueError, match="8 tokens instead of 10"):
        measure(Clock(short=1), work(), lambda: 0.0)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[compare_cpu.Settings]:
    script = tmp_path / "run_fake.py"
    folder = str(compare_cpu.ROOT / "benchmarks" / "peers")
    script.write_text(textwrap.dedent(ENGINE.format(folder=folder)))
    monkeypatch.setitem(compare_cpu.RUNNERS, "transformers", str(script))
    yield compare_cpu.Settings(
        models=Models.inside(tmp_path),
        pythons={"transformers": Path(sys.executable)},
        llama_server=None,
        threads=2,
        cpus="0,1",
        timeout=30.0,
        quick=True,
        quiet=0.0,
        work=tmp_path,
    )


def messages(settings: compare_cpu.Settings, model: str, report: compare_cpu.Report) -> list[dict]:
    job = Job(model, 2, 64, 4, [work("prefill"), work("batch")])
    return list(compare_cpu.run_process(settings, "transformers", job, "fake-bf16", report))


def test_a_process_says_what_it_did_and_a_failed_workload_costs_itself(settings: compare_cpu.Settings) -> None:
    report = compare_cpu.Report()
    started, failed, done = messages(settings, "works", report)
    assert (started["event"], started["engine"]) == ("started", "fake 1.0") and 0 < started["at"] < 30
    assert (failed["event"], failed["name"], failed["why"]) == ("failed", "prefill", "ValueError: no room")
    assert (done["event"], done["name"], len(done["seconds"])) == ("workload", "batch", 5)
    assert 0 <= done["others"] <= 1
    assert report.lacking == [] and "noise on stdout" in (settings.work / "fake-bf16.log").read_text()
    job = read_job(str(settings.work / "fake-bf16.json"))
    assert job == Job("works", 2, 64, 4, [work("prefill"), work("batch")])


def test_a_process_that_dies_costs_a_line(settings: compare_cpu.Settings) -> None:
    report = compare_cpu.Report()
    assert [message["event"] for message in messages(settings, "dies", report)] == ["started", "failed"]
    assert report.lacking == [
        {"engine": "transformers", "what": "fake-bf16", "why": "ended with 9: out of memory"},
    ]


def test_a_process_that_takes_too_long_is_ended(settings: compare_cpu.Settings) -> None:
    report = compare_cpu.Report()
    settings.timeout = 1.5
    assert [message["event"] for message in messages(settings, "hangs", report)] == ["started", "failed"]
    assert report.lacking[0]["why"] == "not done after 2 s"


def test_engines_take_turns_and_are_stopped_between_them(settings: compare_cpu.Settings, tmp_path: Path) -> None:
    file = tmp_path / "calls"
    settings.timeout = 60.0
    report = compare_cpu.Report()
    job = Job(str(file), 2, 64, 4, [work("batch")])

    def run(label: str) -> list[dict]:
        return list(compare_cpu.run_process(settings, "transformers", job, label, report))

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(run, ("one", "two"))
    assert report.lacking == [] and len(first[-1]["seconds"]) == len(second[-1]["seconds"]) == 5
    calls = [line.split() for line in file.read_text().splitlines()]
    for before, after in pairwise(calls):
        assert float(before[2]) <= float(after[1]), "two at once"
    repetitions = [pid for pid, *_ in calls[-8:]]  # both have started and warmed up long before
    assert all(before != after for before, after in pairwise(repetitions)), repetitions


def test_who_waits_for_a_turn_is_told_that_there_is_none_left() -> None:
    turns = compare_cpu.Turns()
    with turns.begin(), ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(lambda: turns.begin().__enter__())
        time.sleep(0.05)
        assert not waiting.done()
        turns.end()
        with pytest.raises(KeyboardInterrupt):
            waiting.result(5)


def test_a_session_becomes_figures(settings: compare_cpu.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [
        {"event": "started", "engine": "fake 1.0", "settings": {}, "at": 4.5},
        {"event": "workload", "name": "one-stream", "seconds": [2.0, 2.5, 9.0]},
        {"event": "workload", "name": "decode", "seconds": [0.5, 0.4, 0.5]},
        {"event": "workload", "name": "shared-prefix", "seconds": [4.0]},
        {"event": "failed", "name": "batch", "why": "no room"},
    ]
    jobs: list[Job] = []

    def answer(settings: object, engine: str, job: Job, label: str, report: object) -> list[dict]:
        jobs.append(job)
        return said

    monkeypatch.setattr(compare_cpu, "run_process", answer)
    said = [{"at": 5.0, "others": 0.25, **message} for message in said]
    report = compare_cpu.Report()
    compare_cpu.run_session(settings, compare_cpu.SESSIONS[0], "transformers", set(BY_KEY), report)
    figures = {row: cells["transformers"]["value"] for row, cells in report.figures.items()}
    assert figures == {"one-stream": 51.2, "decode": 63.5, "shared-prefix": 16.0, "start-process": 4.5}
    assert report.lacking == [{"engine": "transformers", "what": "batch", "why": "no room"}]
    assert [one.name for one in jobs[0].works] == ["one-stream", "decode", "prefill", "batch", "shared-prefix"]
    assert [run["what"] for run in report.runs] == ["bf16 workloads", "starts"]
    assert {cell["others"] for cells in report.figures.values() for cell in cells.values()} == {0.25}

    compare_cpu.run_session(settings, compare_cpu.SESSIONS[2], "transformers", {"qwen3-batch"}, report)
    assert len(jobs) == 1 and report.lacking[-1]["what"] == "qwen3-batch"  # hopeless: not begun


def test_every_row_is_measured_by_something_and_most_have_a_floor() -> None:
    measured = {row for session in compare_cpu.SESSIONS for row in session.works}
    measured |= {row for rows in compare_cpu.SERVER_ROWS.values() for row in rows} | {"start-process"}
    assert measured == set(BY_KEY)
    floors = compare_cpu.floors(Machine())
    assert set(BY_KEY) - set(floors) == {"start", "start-q4_1", "start-process", "server-ttft", "server-itl"}
    assert floors["decode"] > floors["one-stream"] > 100 and floors["memory"] == pytest.approx(1.343, abs=0.001)


def test_all_engines_get_the_same_prompts_new_in_each_repetition() -> None:
    first, again = (compare_cpu.make_work("batch", "batch", False) for _ in range(2))
    assert first == again and len({tuple(prompts[0]) for prompts in first.repetitions}) == 5
    assert sum(map(len, first.repetitions[0])) == 18_493 and first.outputs == [128] * 64
    assert len(compare_cpu.make_work("batch", "batch", True).repetitions) == 1
    token = compare_cpu.make_work("decode", "first-token", False)
    assert (len(token.repetitions[0][0]), token.outputs) == (128, [1])
    assert token.repetitions[0] != compare_cpu.make_work("one-stream", "one-stream", False).repetitions[0]


# --- the servers' client ----------------------------------------------------------------------------------------------


class FakeServer:
    """Streams three tokens in two events, then usage; refuses the prompt "bad". Counts how many it answers at once."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.tasks: list[asyncio.Task] = []
        self.active = self.most = self.port = 0
        self.ready, self.loop = threading.Event(), asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(self.serve(),))
        self.stop = asyncio.Event()

    async def serve(self) -> None:
        server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        await self.stop.wait()
        server.close()
        await asyncio.gather(*self.tasks)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        with contextlib.suppress(ConnectionError):  # the client may have given up
            await self.answer(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        self.bodies.append(body)
        if body["prompt"] == "bad":
            writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nno")
        else:
            self.active += 1
            self.most = max(self.most, self.active)
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            for text in ("a", "bc"):
                event = {"choices": [{"text": text}], "usage": None}
                writer.write(b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n")
                await writer.drain()
                await asyncio.sleep(0.02)
            last = {"choices": [], "usage": {"completion_tokens": 3}}
            writer.write(b"data: " + json.dumps(last, separators=(",", ":")).encode() + b"\n\ndata: [DONE]\n\n")
            self.active -= 1
        await writer.drain()


@pytest.fixture
def fake_server() -> Iterator[FakeServer]:
    server = FakeServer()
    server.thread.start()
    assert server.ready.wait(5)
    yield server
    server.loop.call_soon_threadsafe(server.stop.set)
    server.thread.join(5)
    server.loop.close()


def test_the_client_counts_tokens_by_usage_and_keeps_its_streams_busy(fake_server: FakeServer) -> None:
    load = servers.ask(fake_server.port, [f"prompt {number}" for number in range(8)], streams=3, tokens=3)
    assert load.tokens == 24 and (len(load.first), len(load.between)) == (8, 8)
    assert fake_server.most == 3 and {body["max_tokens"] for body in fake_server.bodies} == {3}
    report = load.report()
    assert report["output_tokens_per_second"] == pytest.approx(24 / load.seconds)
    assert report["itl_p50_ms"] > 15 and report["ttft_p50_ms"] > 0


def test_a_refused_request_is_not_a_figure(fake_server: FakeServer) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        servers.ask(fake_server.port, ["good", "bad"], streams=2, tokens=3)
    assert isinstance(caught.value.exceptions[0], OSError)


def test_a_server_that_ends_says_its_last_line(tmp_path: Path) -> None:
    code = "import sys; print('port {port} is taken', file=sys.stderr); sys.exit(3)"
    launch = servers.Launch([sys.executable, "-c", code], {}, tmp_path)
    with (
        pytest.raises(ChildProcessError, match=r"ended with 3: port \d+ is taken"),
        servers.serving(launch, tmp_path / "log", 20),
    ):
        pass
