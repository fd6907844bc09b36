"""GET /health, /ping, /version and /load. Open to everybody."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import Request, Response

import octavo
from octavo.server.errors import RETRY_SECONDS
from octavo.server.protocol.admin import Health, Load, Version
from octavo.server.routing import make_router
from octavo.server.state import state_of

router = make_router("operation")

_HEALTH: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "Not ready, or not any more."}}


@router.get("/health", response_model=Health, responses=_HEALTH)
@router.get("/ping", response_model=Health, responses=_HEALTH)
@router.post("/ping", response_model=Health, responses=_HEALTH, operation_id="ping_post")
async def health(request: Request) -> Response:
    """200 where requests are answered, else 503 and why not."""
    status = state_of(request).status
    body, is_ready = msgspec.json.encode({"status": status}), status == "ready"
    headers = {} if is_ready else {"Retry-After": str(RETRY_SECONDS)}
    return Response(body, 200 if is_ready else 503, headers, "application/json")


@router.get("/version")
async def version() -> Version:
    return Version(version=octavo.__version__)


@router.get("/load")
async def load(request: Request) -> Load:
    """How many requests are being answered."""
    return Load(server_load=state_of(request).num_active)
