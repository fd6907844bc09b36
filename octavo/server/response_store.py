"""Responses that are kept for retrieval and for conversations that go on from them; bounded, in memory."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import msgspec

MAX_RESPONSES = 1000
MAX_BYTES = 64 << 20


@dataclass(eq=False)
class StoredResponse:
    """`response` is as it is now; `messages` are the conversation, its answer included once it is complete."""

    response: dict[str, Any]
    messages: list[dict[str, Any]]
    task: asyncio.Task[None] | None = None  # makes it in the background
    events: list[bytes] = field(default_factory=list)  # of a background response, the sequence number is the index
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    is_over: bool = False  # no event follows
    num_bytes: int = 0

    @property
    def is_running(self) -> bool:
        return self.response["status"] in ("queued", "in_progress")

    async def end(self) -> None:
        """Lets go whoever waits for events."""
        async with self.changed:
            self.is_over = True
            self.changed.notify_all()


class ResponseStore:
    """The least recently used go first; those that are being made stay."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self.max_responses, self.max_bytes = max_responses, max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[str, StoredResponse] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

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
