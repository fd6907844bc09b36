"""Responses that other server processes of the same core keep. Each answers the others for its own, over a Unix socket
in a directory that only their user can enter; one that dies takes its responses along, as a single process would.

An exchange is one connection: a question, then frames (four bytes of length, then so many bytes).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from octavo.server.errors import ApiError
from octavo.server.response_store import ResponseStore, StoredResponse

logger = logging.getLogger(__name__)

_PATIENCE = 5.0  # seconds for a process that is busy with something else
_OVER = b""  # after the last event
_LOST = "the server process that keeps this response does not answer: ask again in a moment"


@dataclass(frozen=True)
class Place:
    """Which of several server processes this one is."""

    directory: str  # of the sockets
    index: int
    count: int

    def path(self, index: int) -> str:
        return f"{self.directory}/peer-{index}"


class _Question(msgspec.Struct):
    verb: Literal["get", "cancel", "remove", "follow"]
    response_id: str
    start: int = 0  # of "follow"


class _Snapshot(msgspec.Struct):
    """Null on the wire where nothing of the name is kept."""

    response: dict[str, Any]
    messages: list[dict[str, Any]]


class RemoteResponse:
    """A response as it was when it was asked for; what is done to it is done where it is kept."""

    def __init__(self, path: str, snapshot: _Snapshot) -> None:
        self.response, self.messages = snapshot.response, snapshot.messages
        self._path = path

    async def cancel(self) -> None:
        await self._do("cancel")

    async def remove(self) -> None:
        await self._do("remove")

    async def follow(self, start: int) -> AsyncGenerator[bytes, None]:
        """Raises ApiError where the other process ends on the way."""
        try:
            async with _asking(self._path, _Question("follow", self.response["id"], start)) as reader:
                while (events := await _read(reader)) != _OVER:
                    yield events
        except (OSError, EOFError):
            raise ApiError(503, _LOST) from None

    async def _do(self, verb: Literal["cancel", "remove"]) -> None:
        snapshot = await _ask(self._path, _Question(verb, self.response["id"]))
        if snapshot is not None:
            self.response, self.messages = snapshot.response, snapshot.messages


class ResponsePeers:
    """Belongs to the event loop. `open` before use, `close` after it."""

    def __init__(self, store: ResponseStore, place: Place) -> None:
        self._store, self._place = store, place
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        path = self._place.path(self._place.index)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of one that was killed
        self._server = await asyncio.start_unix_server(self._answer, path)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def find(self, response_id: str) -> RemoteResponse | None:
        """Raises ApiError where it is not to be had now, though it may be kept."""
        place, question = self._place, _Question("get", response_id)
        paths = [place.path(index) for index in range(place.count) if index != place.index]
        found = await asyncio.gather(*(_ask(path, question) for path in paths), return_exceptions=True)
        for path, snapshot in zip(paths, found, strict=True):
            if isinstance(snapshot, _Snapshot):
                return RemoteResponse(path, snapshot)
        for error in found:
            if isinstance(error, BaseException):
                raise error
        return None

    # ---- for the others

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            question = msgspec.json.decode(await _read(reader), type=_Question)
            entry = self._store.get(question.response_id)
            if entry is None:
                await _write(writer, b"null")
            elif question.verb == "follow":
                await _until_gone(reader, _send_events(entry, question.start, writer))
            else:
                if question.verb != "get":
                    await entry.cancel()
                if question.verb == "remove":
                    self._store.remove(question.response_id)
                await _write(writer, msgspec.json.encode(_Snapshot(entry.response, entry.messages)))
        except (OSError, EOFError):  # the other process has gone
            return
        except Exception:
            logger.exception("another server process could not be answered")
        finally:
            writer.close()


async def _send_events(entry: StoredResponse, start: int, writer: asyncio.StreamWriter) -> None:
    async with aclosing(entry.follow(start)) as batches:
        async for events in batches:
            await _write(writer, events)
    await _write(writer, _OVER)


async def _until_gone(reader: asyncio.StreamReader, work: Any) -> None:
    """Runs `work` for as long as the other end of the connection is there."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(reader.read())
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _ask(path: str, question: _Question) -> _Snapshot | None:
    """Raises ApiError where nobody answers in time. A process that is not there keeps nothing."""
    try:
        async with asyncio.timeout(_PATIENCE), _asking(path, question) as reader:
            return msgspec.json.decode(await _read(reader), type=_Snapshot | None)
    except TimeoutError:
        raise ApiError(503, _LOST) from None
    except (OSError, EOFError):
        return None


@contextlib.asynccontextmanager
async def _asking(path: str, question: _Question) -> AsyncGenerator[asyncio.StreamReader, None]:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        await _write(writer, msgspec.json.encode(question))
        yield reader
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> bytes:
    """Raises EOFError where the connection ends."""
    return await reader.readexactly(int.from_bytes(await reader.readexactly(4), "little"))


async def _write(writer: asyncio.StreamWriter, frame: bytes) -> None:
    writer.write(len(frame).to_bytes(4, "little") + frame)
    await writer.drain()
