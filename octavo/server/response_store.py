"""Responses that are kept for retrieval and for conversations that go on from them; bounded, in memory. Those of other
processes are in response_peers.py."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

MAX_RESPONSES = 1000
MAX_BYTES = 64 << 20


class KeptResponse(Protocol):
    """A response, wherever it is kept. `messages` are the conversation, its answer included once it is complete."""

    response: dict[str, Any]
    messages: list[dict[str, Any]]

    async def cancel(self) -> None:
        """Ends it if it is being made; `response` says how it ended."""

    async def remove(self) -> None:
        """Cancels and forgets it."""

    def follow(self, start: int) -> AsyncGenerator[bytes, None]:
        """The events of a background response from number `start` on, until it ends."""


class Elsewhere(Protocol):
    """Other stores, of other processes."""

    async def find(self, response_id: str) -> KeptResponse | None: ...


@dataclass(eq=False)
class StoredResponse:
    """A KeptResponse of this process; `response` is as it is now."""

    response: dict[str, Any]
    messages: list[dict[str, Any]]
    store: ResponseStore
    task: asyncio.Task[None] | None = None  # makes it in the background
    events: list[bytes] = field(default_factory=list)  # of a background response, the sequence number is the index
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    is_over: bool = False  # no event follows
    num_bytes: int = 0

    @property
    def is_running(self) -> bool:
        return self.response["status"] in ("queued", "in_progress")

    async def cancel(self) -> None:
        if self.is_running and self.task is not None:
            self.response["status"] = "cancelled"
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            await self.end()

    async def remove(self) -> None:
        await self.cancel()
        self.store.remove(self.response["id"])

    async def follow(self, start: int) -> AsyncGenerator[bytes, None]:
        position = min(start, len(self.events) + 1)
        while True:
            async with self.changed:
                while position >= len(self.events) and not self.is_over:
                    await self.changed.wait()
                new = self.events[position:]
            if not new:
                return
            position += len(new)
            yield b"".join(new)

    async def end(self) -> None:
        """Lets go whoever waits for events."""
        async with self.changed:
            self.is_over = True
            self.changed.notify_all()


class ResponseStore:
    """The least recently used go first; those that are being made stay. `elsewhere` has what is not here."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self.max_responses, self.max_bytes = max_responses, max_bytes
        self.num_bytes = 0
        self.elsewhere: Elsewhere | None = None
        self._entries: OrderedDict[str, StoredResponse] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    async def find(self, response_id: str) -> KeptResponse | None:
        """Here or elsewhere."""
        entry = self.get(response_id)
        if entry is None and self.elsewhere is not None:
            return await self.elsewhere.find(response_id)
        return entry

    def get(self, response_id: str) -> StoredResponse | None:
        entry = self._entries.get(response_id)
        if entry is not None:
            self._entries.move_to_end(response_id)
        return entry

    def put(self, entry: StoredResponse) -> None:
        """Adds it, or measures anew what has grown."""
        response_id = entry.response["id"]
        self.remove(response_id)
        entry.num_bytes = _size(entry.response) + _size(entry.messages) + sum(map(len, entry.events))
        self._entries[response_id] = entry
        self.num_bytes += entry.num_bytes
        for old in list(self._entries.values()):
            if len(self._entries) <= self.max_responses and self.num_bytes <= self.max_bytes:
                break
            if not old.is_running:
                self.remove(old.response["id"])

    def remove(self, response_id: str) -> StoredResponse | None:
        entry = self._entries.pop(response_id, None)
        if entry is not None:
            self.num_bytes -= entry.num_bytes
        return entry


def _size(content: Any) -> int:
    return len(msgspec.json.encode(content))
