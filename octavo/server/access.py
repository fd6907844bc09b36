"""Who may ask, and a name for each request: two ASGI layers round the application."""

from __future__ import annotations

import hashlib
import hmac
import re
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.errors import ApiError, error_response
from octavo.telemetry.finished import current_trace, trace_headers

GUARDED = ("/v1", "/v2", "/inference", "/cohere", "/internal", "/tokenize", "/detokenize")
REQUEST_ID = b"x-request-id"
_GOOD_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class ApiKeys:
    """Lets a request to a guarded path pass only with one of the keys: `Authorization: Bearer KEY` or `x-api-key`.

    Every key is compared, in constant time, so that the time taken says nothing about any of them.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "lifespan"
            or scope.get("method") == "OPTIONS"
            or not is_guarded(scope)
            or self._knows(dict(scope["headers"]))
        ):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "a key is needed"})
        else:
            await error_response(_UNAUTHORIZED, route_path(scope))(scope, receive, send)

    def _knows(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = bearer.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        digest, known = _digest(given), False
        for right in self._digests:
            known |= hmac.compare_digest(digest, right)
        return known


class RequestIds:
    """Each request has a name, the client's X-Request-Id or ours; the answer repeats it. It may belong to a trace."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == REQUEST_ID), b"")
        name = given if _GOOD_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        scope.setdefault("state", {})["request_id"] = name.decode()
        headers = {header.decode("latin-1"): value.decode("latin-1") for header, value in scope["headers"]}
        current_trace.set(trace_headers(headers))  # also where there is none: a task may serve several requests

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (REQUEST_ID, name)]
            await send(message)

        await self.app(scope, receive, send_named)


def is_guarded(scope: Scope) -> bool:
    paths = (scope["path"], route_path(scope))
    return any(path == prefix or path.startswith(prefix + "/") for path in paths for prefix in GUARDED)


def route_path(scope: Any) -> str:
    """The path without the proxy's part of it, as routes are matched."""
    path: str = scope["path"]
    root = scope.get("root_path", "")
    return path[len(root) :] if root and (path == root or path.startswith(root + "/")) else path


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


_UNAUTHORIZED = ApiError(
    401,
    "this path needs a key: send the header Authorization: Bearer KEY (or x-api-key: KEY)",
    headers={"WWW-Authenticate": "Bearer"},
)
