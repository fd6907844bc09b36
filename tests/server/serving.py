"""`octavo serve` as a process, on a free port or a Unix socket, over a tiny random model or none at all (light.py)."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from octavo.config.env import child_environment

ROOT = Path(__file__).resolve().parents[2]
MODEL_FLAGS = ["--load-format", "dummy", "--threads", "1", "--num-gpu-blocks-override", "256", "--max-num-seqs", "32"]


@dataclass
class Process:
    process: subprocess.Popen[str]
    started: float
    url: str = ""  # without a path; empty for a Unix socket
    lines: list[str] = field(default_factory=list)

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def wait(self, seconds: float = 30) -> int:
        return self.process.wait(seconds)


@contextlib.contextmanager
def serving(
    model: Path, *flags: str, environment: dict[str, str] | None = None, is_light: bool = False
) -> Iterator[Process]:
    """Yields when it listens. Killed at the end, if it still runs."""
    where = [] if "--uds" in flags else ["--host", "127.0.0.1", "--port", "0"]
    module = "tests.server.light" if is_light else "octavo"
    command = [sys.executable, "-m", module, "serve", str(model), *MODEL_FLAGS, *where, *flags]
    popen = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(OMP_NUM_THREADS="1", **(environment or {})),
    )
    process = Process(popen, time.monotonic())
    listens = threading.Event()

    def read() -> None:
        assert popen.stderr is not None
        for line in popen.stderr:
            process.lines.append(line)
            if (found := re.search(r"listening at (\S+);", line)) is not None:
                process.url = found[1]
            if "listening at" in line:
                listens.set()
        listens.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert listens.wait(30), process.log
        yield process
    finally:
        popen.kill()
        popen.wait()
        reader.join()
        assert popen.stderr is not None
        popen.stderr.close()


def until_ready(client: httpx.Client, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while client.get("/health").status_code != 200:
        assert time.monotonic() < deadline, "the server does not become ready"
        time.sleep(0.05)
