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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
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


def test_a_full_queue_and_a_core_that_dies_as_clients_see_them(tiny_model: Path) -> None:
    flags = ["--max-num-seqs", "1", "--max-num-queued-reqs", "2", "--root-path", "/behind"]
    with (
        serving(tiny_model, *flags, environment={**SLOW, LOAD_SECONDS: "0.5"}, is_light=True) as process,
        httpx.Client(base_url=process.url, timeout=30) as client,
        ThreadPoolExecutor(2) as others,
    ):
        until_ready(client)
        for path in ("/v1/models", "/behind/v1/models"):
            assert client.get(path).status_code == 200
        with client.stream("POST", "/v1/completions", json=LONG) as stream:
            lines = stream.iter_lines()
            next(lines)
            short = {"prompt": "x", "max_tokens": 3, "ignore_eos": True}
            waiting = [others.submit(httpx.post, f"{process.url}/v1/completions", json=short) for _ in range(2)]
            while client.get("/load").json()["server_load"] < 3:
                time.sleep(0.01)
            asked = time.monotonic()
            refused = client.post("/v1/completions", json=short)
            assert refused.status_code == 503 and time.monotonic() - asked < 1
            assert int(refused.headers["retry-after"]) > 0
            assert "max_num_queued_reqs" in refused.json()["error"]["message"]
            (core,) = psutil.Process(process.process.pid).children()
            core.kill()
            rest = [line for line in lines if line]
            assert [line for line in rest if "error" in line] == [rest[-2]] and rest[-1] == "data: [DONE]"
            assert json.loads(rest[-2][6:])["error"]["code"] == 503
            status = client.get("/health")
            assert status.status_code == 503 and status.json() == {"status": "restarting"}
        assert [answer.result().json()["usage"]["completion_tokens"] for answer in waiting] == [3, 3]
        assert client.get("/health").json() == {"status": "ready"}


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
    path = tmp_path / "s"
    with serving(tiny_model, "--uds", str(path), environment={LOAD_SECONDS: "60"}, is_light=True) as process:
        process.process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, process.log
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


def test_what_answers_has_no_torch_in_it(server: Process, http: httpx.Client) -> None:
    """Nor numpy, without which transformers does not come. The core, in another process, has."""
    assert http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}).status_code == 200
    process = psutil.Process(server.process.pid)
    (core,) = process.children()
    names = {one.pid: {Path(mapped.path).name for mapped in one.memory_maps()} for one in (process, core)}
    assert any("torch" in name for name in names[core.pid])
    assert not [name for name in names[process.pid] if "torch" in name or "multiarray" in name]
