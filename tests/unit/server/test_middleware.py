"""Layers of the operator's own (--middleware), round whole answers and streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastapi import Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.errors import ConfigurationError
from octavo.server.middleware import load_middleware
from tests.unit.server.scripted_server import run, scripted_server
from tests.unit.server.test_sse import Client, scope_of

HERE = "tests.unit.server.test_middleware"


class Tagging:
    """Adds a header to each answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-tagged", b"yes")]
            await send(message)

        await self.app(scope, receive, tagged)


async def refusing(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    """Turns away who does not say please."""
    if "please" not in request.headers:
        return Response("say please", 418)
    return await answer(request)


NOTHING = 1


def test_a_class_and_a_function_of_which_the_last_is_outermost() -> None:
    async def work() -> None:
        names = [f"{HERE}.Tagging", f"{HERE}.refusing"]
        async with scripted_server("the cat", middleware=names, api_key=["k"]) as server:
            refused = await server.client.get("/health")
            assert refused.status_code == 418 and "x-tagged" not in refused.headers
            assert refused.headers["x-request-id"], "names of requests stay outside of all"
            server.client.headers["please"] = "yes"
            unknown = await server.client.get("/v1/models")
            assert unknown.status_code == 401 and unknown.headers["x-tagged"] == "yes"
            server.client.headers["x-api-key"] = "k"
            whole = await server.json("/v1/completions", prompt="x")
            chunks = await server.chunks("/v1/completions", prompt="x")
            assert chunks[-1] == "[DONE]"
            assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == whole["choices"][0]["text"]

    run(work)


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_is_noticed_through_a_function(stream: bool) -> None:
    async def work() -> None:
        async with scripted_server("the cat " * 100, middleware=[f"{HERE}.refusing"]) as server:
            server.core.before_step = lambda: time.sleep(0.01)
            client = Client()
            asking: dict[str, Any] = scope_of("/v1/completions")
            asking["headers"] += [(b"please", b"yes")]
            receive = client.asking({"prompt": "a", "max_tokens": 400, "stream": stream})
            answering = asyncio.ensure_future(server.app(asking, receive, client.send))
            while not server.core.requests:
                await asyncio.sleep(0.001)
            client.gone.set()
            await asyncio.gather(answering, return_exceptions=True)
            while server.core.requests:
                await asyncio.sleep(0.001)

    run(work)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("nowhere", "an import path"),
        ("no.such.module.Name", "ModuleNotFoundError"),
        (f"{HERE}.Absent", "AttributeError"),
        (f"{HERE}.NOTHING", "neither a class nor an async function"),
    ],
)
def test_what_cannot_be_used_is_named(path: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=f"(?s)middleware: {path}.*{why}"):
        load_middleware([path])
