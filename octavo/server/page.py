"""The page at /: its files, and the events of its live view."""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from octavo.server.metrics import Recorded
from octavo.telemetry.live import LiveView

STATIC = Path(__file__).parent / "static"
FILES = {"index.html": "text/html", "app.js": "text/javascript", "live.js": "text/javascript", "style.css": "text/css"}
POLICY = (  # nothing from elsewhere, nothing inline: a model's words stay words
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # ask each time; the answer is mostly 304
}


def router(state: Recorded) -> APIRouter:
    """GET / and its files are open to everybody: they hold nothing secret. GET /internal/events belongs behind the
    API key."""
    made = APIRouter(include_in_schema=False)
    contents = {name: (STATIC / name).read_bytes() for name in FILES}

    def answer(name: str, request: Request) -> Response:
        tag = f'"{sha256(contents[name]).hexdigest()[:16]}"'
        headers = {**HEADERS, "etag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(contents[name], media_type=f"{FILES[name]}; charset=utf-8", headers=headers)

    @made.get("/")
    async def page(request: Request) -> Response:
        return answer("index.html", request)

    def add(name: str) -> None:
        @made.get(f"/static/{name}")
        async def file(request: Request) -> Response:
            return answer(name, request)

    for name in FILES:
        if name != "index.html":
            add(name)

    @made.get("/internal/events")
    async def events() -> Response:
        recorder = state.recorder
        if recorder is None:
            return _refusal(503, "the engine is starting")
        if recorder.live is None:
            return _refusal(404, "statistics are off: the server was started with --disable-log-stats")
        if recorder.live.is_full:
            return _refusal(503, "as many pages watch already as the server allows")
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(_stream(recorder.live), media_type="text/event-stream", headers=headers)

    return made


async def _stream(live: LiveView) -> AsyncIterator[bytes]:
    events = live.listen()
    try:
        async for event in events:
            yield b"data: " + event + b"\n\n"
    finally:  # the reader is gone, or the server stops
        await events.aclose()  # type: ignore[attr-defined]


def _refusal(status: int, message: str) -> Response:
    error = {"message": message, "type": "unavailable", "param": None, "code": status}
    return Response(msgspec.json.encode({"error": error}), status_code=status, media_type="application/json")
