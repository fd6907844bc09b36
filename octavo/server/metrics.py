"""GET /metrics."""

from __future__ import annotations

from typing import Protocol

from fastapi import APIRouter, Request, Response

from octavo.telemetry.recorder import Recorder


class Recorded(Protocol):
    """The part of the server's state that this router needs. `recorder` is None until the engine's is there."""

    @property
    def recorder(self) -> Recorder | None: ...


def router(state: Recorded) -> APIRouter:
    made = APIRouter()

    @made.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        recorder = state.recorder
        if recorder is None:
            return Response("# the engine is starting\n", media_type="text/plain")
        if recorder.metrics is None:
            return Response("# off: the server was started with --disable-log-stats\n", media_type="text/plain")
        body, content_type = recorder.metrics.render(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    return made
