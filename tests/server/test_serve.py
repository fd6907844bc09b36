"""The server as a process: how it starts, where it listens, how it ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from octavo.cli.main import main as octavo
from tests.server.light import LOAD_SECONDS
from tests.server.serving import ROOT, Process, serving, until_ready

LONG = {"prompt": "the cat", "max_tokens": 480, "stream": True, "ignore_eos": True, "min_tokens": 480}
SLOW = {"OCTAVO_TEST_FAULTS": "delay=0.004"}  # seconds for each step: LONG takes two


def test_it_answers_before_the_model_is_loaded_and_keeps_to_a_socket_and_a_key(
    tiny_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "s.sock"
    file = tmp_path / "server.yaml"
    file.write_text("served-model-name: from-file\napi-key: [file-key]\nuvicorn-log-level: warning\n")
    flags = ["--uds", str(path), "--config", str(file), "--api-key", "k1", "k2", "--shutdown-timeout", "20"]
    environment = {"OCTAVO_API_KEY": "env", LOAD_SECONDS: "1", **SLOW}
    with serving(tiny_model, *flags, environment=environment, is_light=True) as process:
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://server") as client:
            first = client.get("/health")
            assert first.status_code == 503 and first.json() == {"status": "starting"}
            early = client.get("/v1/models", headers={"Authorization": "Bearer k1"})
            assert early.status_code == 503 and early.headers["retry-after"]
            until_ready(client)
            for key, status in (("k1", 200), ("k2", 200), ("file-key", 401), ("env", 401)):
                answer = client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
                assert answer.status_code == status, key
                assert status == 401 or answer.json()["data"][0]["id"] == "from-file"
            _drains(process, client)
        assert not path.exists()


def _drains(process: Process, client: httpx.Client) -> None:
    """A running stream ends as it would have."""
    with client.stream("POST", "/v1/completions", json=LONG, headers={"x-api-key": "k1"}) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.process.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert rest[-2] == "data: [DONE]" and '"finish_reason":"length"' in rest[-4]
    assert process.wait() == 0, process.log


@pytest.mark.parametrize(("flags", "num_signals"), [((), 1), (("--shutdown-timeout", "60"), 2)])
def test_who_is_not_waited_for_is_told(tiny_model: Path, flags: tuple[str, ...], num_signals: int) -> None:
    with (
        serving(tiny_model, *flags, environment=SLOW, is_light=True) as process,
        httpx.Client(base_url=process.url, timeout=30) as client,
    ):
        until_ready(client)
        with client.stream("POST", "/v1/completions", json=LONG) as stream:
            lines = stream.iter_lines()
            next(lines)
            for _ in range(num_signals):
                process.process.send_signal(signal.SIGTERM)
                time.sleep(0.2)
            started = time.monotonic()
            if num_signals == 1:
                rest = [line for line in lines if line]
                assert '"code":503' in rest[-2] and rest[-1] == "data: [DONE]"
            assert process.wait() == 0 and time.monotonic() - started < 15, process.log


def test_a_client_that_leaves_takes_its_request_along(server: Process, http: httpx.Client) -> None:
    with socket.create_connection((httpx.URL(server.url).host, httpx.URL(server.url).port or 80)) as sock:
        body = json.dumps({**LONG, "stream": False, "n": 8}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        deadline = time.monotonic() + 10
        while http.get("/load").json()["server_load"] == 0:
            assert time.monotonic() < deadline
    deadline = time.monotonic() + 2
    while http.get("/load").json()["server_load"]:
        assert time.monotonic() < deadline
    assert http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}).status_code == 200


def test_concurrent_streams(server: Process, http: httpx.Client) -> None:
    texts: dict[int, list[str]] = {0: [], 1: []}

    def ask(kind: int) -> None:
        body = {"prompt": "the cat" if kind else "hello", "max_tokens": 20, "temperature": 0, "stream": True}
        with http.stream("POST", "/v1/completions", json={**body, "ignore_eos": True}) as stream:
            lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: {")]
        texts[kind].append("".join(json.loads(line)["choices"][0]["text"] for line in lines))

    threads = [threading.Thread(target=ask, args=(i % 2,)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts[0]) == len(texts[1]) == 12 and set(texts[0]).isdisjoint(texts[1])
    assert len(set(texts[0])) == len(set(texts[1])) == 1


def test_who_ends_it_while_it_loads_does_not_wait(tiny_model: Path, tmp_path: Path) -> None:
    for kind, status in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        path = tmp_path / "s"
        with serving(tiny_model, "--uds", str(path), environment={LOAD_SECONDS: "60"}, is_light=True) as process:
            process.process.send_signal(kind)
            assert process.wait(10) == status, process.log
        assert not path.exists() and "ready" not in process.log


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


def test_wrong_starts_are_one_line(
    tiny_model: Path, taken_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What only turns up once it has begun; wrong flags are tests of the command line."""
    file = tmp_path / "none.pem"
    for flags, message in (
        (["--port", str(taken_port)], f"cannot listen on 127.0.0.1 port {taken_port}"),
        (["--tool-call-parser", "hermse"], "hermes"),
        (["--reasoning-parser", "qwen33"], "qwen3"),
        (["--middleware", "no.such.module.Name"], "middleware: no.such.module.Name cannot be used"),
        (["--ssl-certfile", str(file), "--ssl-keyfile", str(file)], f"ssl_certfile: {file} cannot be read"),
    ):
        assert octavo(["serve", str(tiny_model), "--host", "127.0.0.1", *flags]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ") and message in last
    command = [sys.executable, "-m", "tests.server.light", "serve", str(tmp_path / "none"), "--port", "0"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 1 and last.startswith("error: ") and "there is no file or directory" in last
    assert "Traceback" not in result.stderr


def test_the_server_alone_imports_no_torch() -> None:
    code = "import sys, octavo.server.run; print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
