"""Servers of compare_cpu.py, whoever's they are: started, asked by 32 streams at once, watched for memory. The client
runs beside them on the same cores and decodes as little as it can."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.neighbours import Neighbours
from benchmarks.serving import stream
from octavo.cli.bench.figures import percentile
from octavo.tokenization.tokenizer import Tokenizer

STREAMS, REQUESTS, TOKENS_IN, TOKENS_OUT = 32, 96, 128, 64
MODEL_NAME = "model"
_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Launch:
    """How to start one. `{port}` in the command becomes its port."""

    command: list[str]
    environment: Mapping[str, str]
    directory: Path


class Memory:
    """The most that a process and all that it starts have held, looked at again and again from a thread.

    `pss`: a page that several of them share counts once. `rss`: the sum of what each says its own peak was."""

    def __init__(self, process: psutil.Process) -> None:
        self.pss = self.rss = 0
        self._process = process
        self._is_on = True
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(0.25):
            if self._is_on:
                self.look()

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Looking costs time, which others may be measuring."""
        self._is_on = False
        try:
            yield
        finally:
            self._is_on = True

    def look(self) -> None:
        pss = rss = 0
        with contextlib.suppress(psutil.Error):
            for process in [self._process, *self._process.children(recursive=True)]:
                with contextlib.suppress(OSError, IndexError):
                    pss += _kibibytes(process.pid, "smaps_rollup", "Pss:") << 10
                    rss += _kibibytes(process.pid, "status", "VmHWM:") << 10
        self.pss, self.rss = max(self.pss, pss), max(self.rss, rss)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


@dataclass
class Running:
    process: subprocess.Popen[Any]
    port: int
    start_seconds: float  # from the start of the process to the first token
    memory: Memory
    neighbours: Neighbours

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        with self.memory.off(), stopped(self.process):
            yield


@contextlib.contextmanager
def stopped(process: subprocess.Popen[Any]) -> Iterator[None]:
    """It and what it started do nothing meanwhile, if they are still there. It must have a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)


@contextlib.contextmanager
def serving(launch: Launch, log: Path, timeout: float) -> Iterator[Running]:
    """Yields once it has given a token. Raises TimeoutError, ChildProcessError with the last of its log."""
    port = _free_port()
    command = [part.replace("{port}", str(port)) for part in launch.command]
    with log.open("w") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=launch.directory,
            env=dict(launch.environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        memory, neighbours = Memory(psutil.Process(process.pid)), Neighbours(process.pid)
        try:
            asyncio.run(_first_token(process, port, began + timeout))
            yield Running(process, port, time.perf_counter() - began, memory, neighbours)
        except ChildProcessError as error:
            last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise ChildProcessError(f"{error}: {last[0][:200]}") from None
        finally:
            memory.stop()
            end(process)


def end(process: subprocess.Popen[Any]) -> None:
    """It and what it started: asked first, killed after ten seconds. It must have a session of its own."""
    family = [process.pid]
    with contextlib.suppress(psutil.Error):
        family += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    for pid in family:
        with contextlib.suppress(psutil.Error):
            left = psutil.Process(pid)
            if left.status() != psutil.STATUS_ZOMBIE:
                left.send_signal(signal.SIGKILL)
    process.wait()


async def _first_token(process: subprocess.Popen[Any], port: int, deadline: float) -> None:
    body = {"model": MODEL_NAME, "prompt": "Hello", "max_tokens": 1, "temperature": 0, "ignore_eos": True}
    while True:
        try:
            async for _ in stream(_HOST, port, body):
                return
        except OSError:
            if process.poll() is not None:
                raise ChildProcessError(f"the server ended with {process.returncode}") from None
            if time.perf_counter() > deadline:
                raise TimeoutError("no token in time") from None
            await asyncio.sleep(0.02)


@dataclass
class Load:
    """What the streams saw. Seconds."""

    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: int = 0

    def report(self) -> dict[str, float]:
        return {
            "output_tokens_per_second": self.tokens / self.seconds,
            "tokens": self.tokens,
            "ttft_p50_ms": percentile(self.first, 50) * 1e3,
            "ttft_p99_ms": percentile(self.first, 99) * 1e3,
            "itl_p50_ms": percentile(self.between, 50) * 1e3,
        }


def ask(port: int, prompts: list[str], streams: int = STREAMS, tokens: int = TOKENS_OUT) -> Load:
    """All prompts, as many at a time as there are streams. Raises OSError where a request is refused or breaks."""
    return asyncio.run(_ask(port, list(prompts), streams, tokens))


async def _ask(port: int, prompts: list[str], streams: int, tokens: int) -> Load:
    load = Load()
    waiting = iter(prompts)

    async def one_after_another() -> None:
        for prompt in waiting:
            await _ask_once(port, prompt, tokens, load)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(streams, len(prompts))):
            group.create_task(one_after_another())
    load.seconds = time.perf_counter() - started
    return load


async def _ask_once(port: int, prompt: str, tokens: int, load: Load) -> None:
    body = {
        "model": MODEL_NAME,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    last = time.perf_counter()
    events, usage, is_first = 0, b"", True
    async for event in stream(_HOST, port, body):
        if b'"completion_tokens"' in event:
            usage = event
        if b'"text":' not in event and b'"content":' not in event:
            continue
        now = time.perf_counter()
        (load.first if is_first else load.between).append(now - last)
        last, is_first = now, False
        events += 1
    counted = (json.loads(usage).get("usage") or {}) if usage else {}
    load.tokens += int(counted.get("completion_tokens", events))


def prompts_of_words(tokenizer: Tokenizer, count: int, seed: int, length: int = TOKENS_IN) -> list[str]:
    """Texts of exactly so many tokens: words that are a token each, drawn at random. Texts, since not every server
    takes ids."""
    words = [
        token[1:]
        for token in map(tokenizer.convert_id_to_token, range(tokenizer.vocab_size))
        if token.startswith("Ġ") and token[1:].isascii() and token[1:].isalpha() and token[1:].islower()
    ]
    draw = random.Random(seed)
    prompts: list[str] = []
    while len(prompts) < count:
        text = "".join(" " + word for word in draw.choices(words, k=length))
        if len(tokenizer.encode(text)) == length:
            prompts.append(text)
    return prompts


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _kibibytes(pid: int, file: str, name: str) -> int:
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return 0
