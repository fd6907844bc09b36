"""Streams of server-sent events, encoded by msgspec. A client that goes away ends what it asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from octavo.server.errors import error_body

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
# Seconds a stream's status waits for its first event, so that a refusal by the core still is one.
_GRACE = 0.01
_COMPILE_GRACE = 30.0  # the same where a grammar is compiled

_encode = msgspec.json.Encoder().encode
Result = TypeVar("Result")
Events = AsyncGenerator[bytes, None]  # each item whole events


def data(content: Any) -> bytes:
    """One event without a name."""
    return b"data: " + _encode(content) + b"\n\n"


def named(content: dict[str, Any]) -> bytes:
    """One event that is named by its content's type."""
    return b"event: " + content["type"].encode() + b"\ndata: " + _encode(content) + b"\n\n"


def error_then_done(error: Exception) -> bytes:
    return data(error_body(error)) + DONE


async def open_stream(
    events: Events,
    keep_alive: float = 0.0,
    on_error: Callable[[Exception], bytes] = error_then_done,
    has_form: bool = False,
) -> Response:
    """A response that streams `events`. Raises what they raise at once, while a status can still tell it.

    `keep_alive`: seconds of silence after which a comment is sent, 0 for never. `on_error`: the last events of a
    stream that fails on its way. `has_form`: a grammar is compiled first, which may show the request to be wrong.
    """
    first = asyncio.ensure_future(anext(events))
    try:
        await asyncio.wait({first}, timeout=_COMPILE_GRACE if has_form else _GRACE)
        if first.done() and not first.cancelled():
            error = first.exception()
            if error is not None and not isinstance(error, StopAsyncIteration):
                raise error
    except BaseException:
        await _close(events, first)
        raise
    return _EventStream(events, first, keep_alive, on_error)


class _EventStream(Response):
    media_type = "text/event-stream"

    def __init__(
        self, events: Events, first: asyncio.Future[bytes], keep_alive: float, on_error: Callable[[Exception], bytes]
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._first, self._keep_alive, self._on_error = events, first, keep_alive, on_error
        self._last_sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        beside = [asyncio.ensure_future(_disconnect(receive))]
        sending = asyncio.ensure_future(self._send(send))
        if self._keep_alive > 0:
            beside.append(asyncio.ensure_future(self._keep_it_alive(send)))
        try:
            await asyncio.wait({sending, beside[0]}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, *beside):
                task.cancel()
            await asyncio.gather(sending, *beside, return_exceptions=True)
            await _close(self._events, self._first)
        if sending.done() and not sending.cancelled() and (error := sending.exception()) is not None:
            raise error

    async def _send(self, send: Send) -> None:
        self._last_sent = time.monotonic()
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            try:
                await self._send_body(send, await self._first)
            except StopAsyncIteration:
                pass
            else:
                async for body in self._events:
                    await self._send_body(send, body)
        except OSError:  # the client has gone
            return
        except Exception as error:
            await self._send_body(send, self._on_error(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_body(self, send: Send, body: bytes) -> None:
        """Waits while the client reads slowly; meanwhile the engine merges what comes."""
        if body:
            self._last_sent = time.monotonic()
            await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _keep_it_alive(self, send: Send) -> None:
        while True:
            silent = time.monotonic() - self._last_sent
            if silent >= self._keep_alive:
                await self._send_body(send, KEEP_ALIVE)
                silent = 0.0
            await asyncio.sleep(self._keep_alive - silent)


async def answer_whole(request: Request, work: Coroutine[Any, Any, BaseModel | dict[str, Any]]) -> Response:
    """What `work` returns, as JSON. A client that goes away first gets nothing, and `work` is cancelled."""
    content = await until_disconnect(request, work)
    if content is None:
        return Response(status_code=499)
    body = content.model_dump_json() if isinstance(content, BaseModel) else _encode(content)
    return Response(body, media_type="application/json")


async def until_disconnect(request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
    """What `work` returns; None if the client goes away first, and then `work` is cancelled."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _close(events: Events, first: asyncio.Future[bytes]) -> None:
    """Ends a stream, and with it the request behind it."""
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await events.aclose()
