"""The waiting requests, in the order in which they are served."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from octavo.core.request import Request


class RequestQueue(Protocol):
    def add(self, request: Request) -> None: ...
    def put_back(self, request: Request) -> None:
        """For a preempted request: before those that have never run, where the policy allows."""

    def remove(self, request: Request) -> None: ...
    def __iter__(self) -> Iterator[Request]: ...
    def __len__(self) -> int: ...


class FcfsQueue:
    """First come, first served."""

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()

    def add(self, request: Request) -> None:
        self._requests.append(request)

    def put_back(self, request: Request) -> None:
        self._requests.appendleft(request)

    def remove(self, request: Request) -> None:
        if self._requests and self._requests[0] is request:
            self._requests.popleft()
        else:
            self._requests.remove(request)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __len__(self) -> int:
        return len(self._requests)


class PriorityQueue:
    """Lower priority numbers first, then arrival, then id."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def add(self, request: Request) -> None:
        insort(self._requests, request, key=lambda r: r.order)

    put_back = add

    def remove(self, request: Request) -> None:
        at = bisect_left(self._requests, request.order, key=lambda r: r.order)
        assert self._requests[at] is request
        del self._requests[at]

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __len__(self) -> int:
        return len(self._requests)


QUEUES: dict[str, type[FcfsQueue] | type[PriorityQueue]] = {"fcfs": FcfsQueue, "priority": PriorityQueue}
