"""`octavo serve --api-server-count 2`: whichever process a client meets, it finds what the other one made."""

from __future__ import annotations

import json
import os
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.server.serving import Process, serving, until_ready

URL = "/v1/responses"
LONG = {"prompt": "the cat", "max_tokens": 480, "stream": True, "ignore_eos": True, "min_tokens": 480}


def front_ends(parent: int) -> list[int]:
    module = "octavo.server.frontend_process"
    return [child.pid for child in psutil.Process(parent).children() if module in child.cmdline()]


def client_of(url: str, pid: int, others: list[int]) -> httpx.Client:
    """Its connection is with that process: the others cannot take it meanwhile."""
    for other in others:
        os.kill(other, signal.SIGSTOP)
    try:
        client = httpx.Client(base_url=url, timeout=30, limits=httpx.Limits(max_connections=1))
        until_ready(client)
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)
    return client


def test_responses_are_found_from_either(tiny_model: Path) -> None:
    def ask(client: httpx.Client, **body: Any) -> dict[str, Any]:
        answer = client.post(URL, json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    flags = ["--api-server-count", "2", "--shutdown-timeout", "20"]
    with serving(tiny_model, *flags, environment={"OCTAVO_TEST_FAULTS": "delay=0.004"}, is_light=True) as process:
        pids = front_ends(process.process.pid)
        assert len(pids) == 2
        one, two = (client_of(process.url, pid, [other for other in pids if other != pid]) for pid in pids)
        with closing(one), closing(two):
            made = ask(one, input="the cat", max_output_tokens=4, ignore_eos=True)
            assert two.get(f"{URL}/{made['id']}").json() == made
            again = ask(two, input="and then?", previous_response_id=made["id"], max_output_tokens=4)
            assert again["usage"]["input_tokens"] > made["usage"]["input_tokens"]
            assert one.get(f"{URL}/{again['id']}").json()["previous_response_id"] == made["id"]

            with two.stream("POST", URL, json={"input": "x", "background": True, "stream": True,
                                               "ignore_eos": True, "max_output_tokens": 480}) as stream:  # fmt: skip
                lines = stream.iter_lines()
                first = next(line for line in lines if line.startswith("data: "))
                name = json.loads(first[6:])["response"]["id"]
                assert one.post(f"{URL}/{name}/cancel").json()["status"] == "cancelled"
                assert "event: response.completed" not in list(lines)
            assert two.get(f"{URL}/{name}").json()["status"] == "cancelled"
            assert one.get(f"{URL}/{name}?stream=true").text.startswith("event: response.created")
            assert one.delete(f"{URL}/{name}").json()["deleted"] is True
            assert two.get(f"{URL}/{name}").status_code == 404
            _everybody_is_told_to_end(process, one)
    assert "Traceback" not in process.log and " E " not in process.log, process.log


def _everybody_is_told_to_end(process: Process, client: httpx.Client) -> None:
    """As a service manager does that signals every process of a group. What runs may end, nothing is an error."""
    with client.stream("POST", "/v1/completions", json=LONG) as stream:
        lines = stream.iter_lines()
        next(lines)
        for child in psutil.Process(process.process.pid).children(recursive=True):
            child.send_signal(signal.SIGTERM)
        process.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]" and '"finish_reason":"length"' in rest[-2], rest[-2:]
    assert process.wait() == 0, process.log
