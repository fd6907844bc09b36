"""How requests' bodies are read: as strict JSON, so that nothing inside cannot be written back as UTF-8."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from octavo.server.errors import ApiError
from octavo.server.protocol.fields import ErrorResponse

_decode = msgspec.json.Decoder().decode

# What any endpoint may answer besides its result, for /docs.
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The request is wrong; `param` names the field."},
    401: {"model": ErrorResponse, "description": "A key is needed."},
    404: {"model": ErrorResponse, "description": "No such model, or no such response."},
    503: {"model": ErrorResponse, "description": "The engine is starting, overloaded or gone; see Retry-After."},
}
# The same for endpoints that may stream.
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    **REFUSALS,
}


class _StrictRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        try:
            return _decode(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise ApiError(400, f"the body is not JSON: {error}") from None


class _StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return handle_strictly


def make_router(tag: str) -> APIRouter:
    return APIRouter(route_class=_StrictRoute, tags=[tag], strict_content_type=False)
