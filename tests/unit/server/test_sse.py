"""Streams: what a client that leaves, waits or reads slowly brings about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest
from starlette.types import Receive

from octavo.errors import InvalidRequest
from octavo.server.sse import DONE, KEEP_ALIVE, data, named, open_stream
from tests.unit.server.scripted_server import run, scripted_server


class Client:
    """The far end of a stream."""

    def __init__(self) -> None:
        self.body, self.gone, self.is_complete = b"", asyncio.Event(), False
        self.messages: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    def asking(self, body: Any) -> Receive:
        """`receive`, with a body to come first."""
        is_asked = False

        async def receive() -> Any:
            nonlocal is_asked
            if is_asked:
                return await self.receive()
            is_asked = True
            return {"type": "http.request", "body": msgspec.json.encode(body), "more_body": False}

        return receive

    async def send(self, message: Any) -> None:
        self.messages.append(message)
        if message["type"] == "http.response.body":
            self.body += message["body"]
            self.is_complete = not message.get("more_body", False)


def test_a_client_that_leaves_ends_the_generator() -> None:
    ended = []

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            yield data(1)
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def work() -> None:
        client = Client()
        response = await open_stream(events())
        asking = asyncio.ensure_future(response({"type": "http"}, client.receive, client.send))
        while not client.body:
            await asyncio.sleep(0)
        assert not ended
        client.gone.set()
        await asyncio.wait_for(asking, 1)
        assert ended and not client.is_complete

    run(work)


def test_an_error_before_the_first_event_is_raised_and_a_later_one_told() -> None:
    async def at_once() -> AsyncGenerator[bytes, None]:
        raise InvalidRequest("no", "field")
        yield b""

    async def later() -> AsyncGenerator[bytes, None]:
        yield data(1)
        raise InvalidRequest("no", "field")

    async def work() -> None:
        with pytest.raises(InvalidRequest):
            await open_stream(at_once())
        client = Client()
        await (await open_stream(later()))({"type": "http"}, client.receive, client.send)
        assert client.body.startswith(b'data: 1\n\ndata: {"error":') and client.body.endswith(DONE)
        assert client.body.count(b"error") == 1 and client.is_complete

    run(work)


def test_silence_is_kept_alive() -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        await asyncio.sleep(0.16)
        yield data(1)

    async def work() -> None:
        client = Client()
        await (await open_stream(events(), keep_alive=0.05))({"type": "http"}, client.receive, client.send)
        assert client.messages[0]["type"] == "http.response.start"
        assert 1 <= client.body.count(KEEP_ALIVE) <= 3 and client.body.endswith(b"data: 1\n\n")

    run(work)


def test_named_events() -> None:
    assert named({"type": "a.b", "x": 1}) == b'event: a.b\ndata: {"type":"a.b","x":1}\n\n'


def test_a_slow_reader_gets_merged_deltas() -> None:
    """While one delta is on its way, the engine goes on, and the next one holds all that came meanwhile."""

    async def work() -> None:
        async with scripted_server("the cat sat on the mat " * 10) as server:
            body = {"prompt": "x", "max_tokens": 100, "stream": True}
            client, num_sent = Client(), 0

            async def slow_send(message: Any) -> None:
                nonlocal num_sent
                num_sent += 1
                await asyncio.sleep(0.05)
                await client.send(message)

            await server.app(scope_of("/v1/completions"), client.asking(body), slow_send)
            assert client.is_complete and num_sent < 12  # for 60 tokens and more
            assert client.body.count(b'"finish_reason":"stop"') == 1

    run(work)


def test_leaving_aborts_the_request_in_the_core() -> None:
    async def work() -> None:
        async with scripted_server("the cat " * 100) as server:
            server.core.before_step = lambda: time.sleep(0.01)
            for path, body in (
                ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 400, "n": 2}),
                ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
                ("/v1/messages", {"model": "m", "max_tokens": 400, "messages": [{"role": "user", "content": "a"}]}),
                ("/v1/responses", {"input": "a"}),
            ):
                for stream in (False, True):
                    asking = asyncio.ensure_future(_ask_and_leave(server, path, {**body, "stream": stream}))
                    await asyncio.wait_for(asking, 5)
                    while server.core.requests:
                        await asyncio.sleep(0.001)
                    assert server.state.num_active == 0 and server.engine.outputs.num_unfinished == 0

    run(work)


async def _ask_and_leave(server: Any, path: str, body: dict[str, Any]) -> None:
    client = Client()
    answering = asyncio.ensure_future(server.app(scope_of(path), client.asking(body), client.send))
    while not server.core.requests:
        await asyncio.sleep(0.001)
    client.gone.set()
    await answering
    assert not (client.is_complete and body["stream"])


def scope_of(path: str) -> dict[str, Any]:
    return {
        "type": "http", "method": "POST", "path": path, "query_string": b"", "root_path": "", "http_version": "1.1",
        "headers": [(b"content-type", b"application/json")], "scheme": "http",
    }  # fmt: skip
