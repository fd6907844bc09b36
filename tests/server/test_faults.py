"""200 streams at once while the core is killed, requests fail in the forward, clients vanish and readers stall:
everyone gets an answer or a clear error, once; nothing is left behind; the next 200 are served."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path

import httpx
import psutil
import pytest

from tests.server.serving import serving, until_ready

NUM_STREAMS = 200
RAISE, NAN = 41, 42  # token ids at which the forward fails (tests only)
NUM_OUTPUT = 24


async def stream(url: httpx.URL, index: int, kind: str) -> str:
    """One request; what came of it: "done", "failed", "refused", "vanished". Asserts that the answer is whole."""
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        return await converse(reader, writer, index, kind)
    finally:
        writer.close()


async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, index: int, kind: str) -> str:
    prompt = [5 + index % 20, 7, 9, {"raises": RAISE, "nan": NAN}.get(kind, 11)]
    body = {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": NUM_OUTPUT,
        "stream": True,
        "ignore_eos": True,
        "seed": index,
    }
    body["return_token_ids"] = True
    token_ids: list[int] = []
    finished = errors = done = 0
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(content)}"
    writer.write(f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + content)
    status = int((await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1])
    if status != 200:
        error = json.loads(await reader.read())["error"]
        assert status == 503 and error["message"] and error["type"], error
        return "refused"
    lines = 0
    async for line in reader:  # between events stand the sizes of chunks
        if not line.startswith(b"data: "):
            continue
        lines += 1
        if kind == "vanishes" and lines == 2:
            return "vanished"
        if kind == "stalls" and lines == 2:
            await asyncio.sleep(2)
        if line == b"data: [DONE]\n":
            done += 1
            continue
        event = json.loads(line[6:])
        if "error" in event:
            errors += 1
            assert event["error"]["message"] and event["error"]["type"]
            continue
        for choice in event["choices"]:
            token_ids += choice.get("token_ids") or []
            finished += choice["finish_reason"] is not None
    assert done == 1, "a stream ends with [DONE], once"
    assert finished + errors == 1, "an answer or an error, not both, not twice"
    if finished:
        assert len(token_ids) == NUM_OUTPUT
        return "done"
    return "failed"


def core_pid(parent: int) -> int:
    cores = [
        p.pid for p in psutil.Process(parent).children(recursive=True) if "octavo.engine.core_process" in p.cmdline()
    ]
    assert len(cores) == 1
    return cores[0]


async def everybody(url: str, kinds: list[str], kill: int | None) -> list[str]:
    async with asyncio.timeout(90):
        tasks = [asyncio.create_task(stream(httpx.URL(url), i, kind)) for i, kind in enumerate(kinds)]
        if kill is not None:
            await asyncio.sleep(1.2)
            os.kill(core_pid(kill), signal.SIGKILL)
        return await asyncio.gather(*tasks)


def gauge(client: httpx.Client, name: str) -> float:
    found = re.search(rf"^octavo:{name}{{[^}}]*}} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


@pytest.mark.slow
def test_every_client_gets_an_answer_or_a_clear_error(tiny_model: Path) -> None:
    faults = {"OCTAVO_TEST_FAULTS": f"raise={RAISE},nan={NAN},delay=0.005"}
    with serving(tiny_model, "--served-model-name", "tiny", environment=faults) as process:
        with httpx.Client(base_url=process.url, timeout=60) as client:
            until_ready(client)
            special = {3: "raises", 50: "raises", 17: "nan", 120: "nan"}
            special |= dict.fromkeys(range(60, 80), "vanishes") | dict.fromkeys(range(90, 110), "stalls")
            kinds = [special.get(i, "plain") for i in range(NUM_STREAMS)]
            outcomes = asyncio.run(everybody(process.url, kinds, kill=process.process.pid))
            assert outcomes.count("done") > 50, "those that waited when the core died are served by the next one"
            for i in (3, 17, 50, 120):
                assert outcomes[i] in ("failed", "refused"), (i, outcomes[i])
            until_ready(client)
            assert asyncio.run(everybody(process.url, ["plain"] * NUM_STREAMS, kill=None)) == ["done"] * NUM_STREAMS
            # the guilty end alone where no core dies
            few = asyncio.run(everybody(process.url, ["plain", "raises", "plain", "nan", "plain"], kill=None))
            assert few == ["done", "failed", "done", "failed", "done"]
            assert gauge(client, "num_requests_running") == gauge(client, "num_requests_waiting") == 0
            assert gauge(client, "kv_cache_usage_perc") == 0
        assert "Traceback" not in process.log, process.log
