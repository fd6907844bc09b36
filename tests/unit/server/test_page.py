"""The page's files, the event stream and /metrics over HTTP."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from octavo.core.messages import StepStats
from octavo.server import metrics, page
from octavo.telemetry.live import LiveView
from octavo.telemetry.metrics import Metrics
from octavo.telemetry.recorder import Recorder


class State:
    def __init__(self, recorder: Recorder | None) -> None:
        self.recorder = recorder


def make_app(recorder: Recorder | None) -> FastAPI:
    app = FastAPI()
    app.include_router(metrics.router(State(recorder)))
    app.include_router(page.router(State(recorder)))
    return app


def get(app: FastAPI, path: str, **headers: str) -> httpx.Response:
    async def main() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(main())


def test_the_page_needs_nothing_from_elsewhere_and_is_small() -> None:
    app = make_app(None)
    index = get(app, "/")
    assert index.status_code == 200 and index.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in index.headers["content-security-policy"]
    linked = re.findall(r'(?:src|href)="(static/[^"]+)"', index.text)
    assert set(linked) == {"static/style.css", "static/app.js", "static/live.js"}
    total = len(index.content)
    for name in linked:
        file = get(app, f"/{name}")
        assert file.status_code == 200 and file.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"https?://|//cdn|\bimport\(", file.text), name
        total += len(file.content)
    assert total < 60_000
    assert not re.search(r"<style|<script>|\son\w+=|\sstyle=", index.text)  # the policy would refuse them
    assert {path.name for path in Path(page.STATIC).iterdir()} == set(page.FILES)


def test_an_unchanged_file_is_not_sent_again() -> None:
    app = make_app(None)
    tag = get(app, "/static/app.js").headers["etag"]
    again = get(app, "/static/app.js", **{"if-none-match": tag})
    assert again.status_code == 304 and again.content == b""
    assert get(app, "/static/app.js", **{"if-none-match": '"other"'}).status_code == 200


def test_every_control_has_a_name() -> None:
    text = get(make_app(None), "/").text
    for tag, attributes, body in re.findall(r"<(button|canvas)\b([^>]*)>(.*?)</\1>", text, re.S):
        assert "aria-label=" in attributes or body.strip(), (tag, attributes)
    for attributes in re.findall(r"<(?:input|textarea|select)\b([^>]*)>", text):
        name = re.search(r'id="([^"]+)"', attributes)
        wrapped = re.search(rf"<label[^>]*>(?:(?!</label>).)*{re.escape(attributes)}", text, re.S)
        assert wrapped or (name and f'for="{name[1]}"' in text), attributes


def test_without_an_engine_or_statistics_the_answers_say_so() -> None:
    assert b"starting" in get(make_app(None), "/metrics").content
    starting = get(make_app(None), "/internal/events")
    assert starting.status_code == 503 and starting.json()["error"]["message"] == "the engine is starting"
    off = make_app(Recorder())
    assert b"--disable-log-stats" in get(off, "/metrics").content
    assert get(off, "/internal/events").status_code == 404


def test_metrics_are_exposed_with_their_type() -> None:
    recorder = Recorder(Metrics("m", prefix="vllm"))
    recorder.step(StepStats(num_running=2))
    answer = get(make_app(recorder), "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert 'vllm:num_requests_running{engine="0",model_name="m"} 2.0' in answer.text
    asked = get(make_app(recorder), "/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert asked.headers["content-type"].startswith("application/openmetrics-text")


async def _until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("leaves", [True, False])
def test_the_stream_ends_with_its_reader_or_with_the_server(leaves: bool) -> None:
    live = LiveView("m", 512, 16)
    app = make_app(Recorder(live=live))
    sent: list[bytes] = []
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("body", b""))

    async def main() -> None:
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
            "path": "/internal/events", "raw_path": b"/internal/events", "root_path": "", "scheme": "http",
            "query_string": b"", "headers": [], "client": ("test", 1), "server": ("test", 80),
        }  # fmt: skip
        answer = asyncio.create_task(app(scope, receive, send))  # type: ignore[arg-type]
        await _until(lambda: sum(body.startswith(b"data: ") for body in sent) >= 2)
        assert live.num_listeners == 1 and not answer.done()
        if leaves:
            gone.set()
        else:
            live.close()
        async with asyncio.timeout(5):
            await answer
        assert live.num_listeners == 0

    asyncio.run(main())
    assert sent[1].startswith(b'data: {"type":"hello"') and sent[1].endswith(b"\n\n")


def test_no_more_listeners_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    live = LiveView("m", 512, 16)
    monkeypatch.setattr(LiveView, "is_full", property(lambda self: True))
    assert get(make_app(Recorder(live=live)), "/internal/events").status_code == 503
