"""`octavo serve` as a process, and a client that costs little beside it. For the benchmarks in this folder."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
_MODULES = {"core": "octavo.engine.core_process", "front end": "octavo.server.frontend_process"}


@dataclass
class Server:
    process: subprocess.Popen[str]
    host: str
    port: int
    seconds: dict[str, float]  # from the start of the process to each of its stages
    log: list[str]

    def processes(self) -> dict[str, list[psutil.Process]]:
        """The core, and whatever answers HTTP."""
        first = psutil.Process(self.process.pid)
        found: dict[str, list[psutil.Process]] = {"front end": [], "core": []}
        for child in first.children(recursive=True):
            for kind, module in _MODULES.items():
                if module in child.cmdline():
                    found[kind].append(child)
        found["front end"] = found["front end"] or [first]
        return found


@contextlib.contextmanager
def started(model: str | None, *flags: str, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """Yields once it has given a token; SIGTERM at the end."""
    port = [] if "--port" in flags else ["--port", "0"]
    command = [sys.executable, "-m", "octavo", "serve", *([model] if model else []), *port, *flags]
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    )
    log: list[str] = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line)
            found = re.search(r"listening at (\S+);", line)
            if found is not None:
                break
        else:
            raise SystemExit("the server ended before it listened:\n" + "".join(log))
        threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True).start()
        url = urllib.parse.urlsplit(found[1])
        host, port = (url.hostname or "").replace("0.0.0.0", "127.0.0.1"), url.port or 80
        seconds = {"listens": time.perf_counter() - began}
        _get(host, port, "/health")
        seconds["first_byte_of_health"] = time.perf_counter() - began
        while _get(host, port, "/health") != 200:
            if process.poll() is not None:
                raise SystemExit("the server ended before it was ready:\n" + "".join(log))
            time.sleep(0.05)
        seconds["ready"] = time.perf_counter() - began
        asyncio.run(_first_token(host, port))
        seconds["first_token"] = time.perf_counter() - began
        yield Server(process, host, port, seconds, log)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _get(host: str, port: int, path: str) -> int:
    connection = http.client.HTTPConnection(host, port, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


async def _first_token(host: str, port: int) -> None:
    async for _ in stream(host, port, {"prompt": "Hello", "max_tokens": 1, "ignore_eos": True}):
        return


async def stream(host: str, port: int, body: dict[str, Any]) -> AsyncIterator[bytes]:
    """The data of a completion's events, undecoded, without [DONE]. Raises OSError where it is refused or breaks."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        content = json.dumps({**body, "stream": True}).encode()
        writer.write(
            f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode()
            + content
        )
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise OSError((head + await reader.read()).decode(errors="replace"))
        async for line in reader:  # between them stand the sizes of chunks
            if line.startswith(b"data: [DONE]"):
                return
            if line.startswith(b"data: "):
                yield line[6:].rstrip()
        raise OSError("the stream ended without [DONE]")
    except asyncio.IncompleteReadError as error:
        raise OSError("the connection ended before the answer") from error
    finally:
        writer.close()
