"""A front end's view of a core in another process, which may die and come back.

A request *waits* until the core reports that it has begun it, which the core does before the forward. When the core
dies, what waits is kept and sent to the next one, in order; what had begun ends with EngineRestarting, for nobody
knows how far it came. Each core process has its own address and connection, so nothing of a dead one arrives late.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import zmq

from octavo.core.messages import (
    Abort,
    CoreStats,
    CoreStatus,
    Delta,
    Goodbye,
    Hello,
    Query,
    Reply,
    StepOutputs,
    StepStats,
    Submit,
)
from octavo.core.request import FinishReason
from octavo.core.wire import MalformedMessage, ToCore, decode_to_frontend, encode
from octavo.errors import EngineDead, EngineRestarting, EngineStarting, InvalidRequest, Unavailable

_log = logging.getLogger(__name__)

# A request that was on its way to this many cores when they died may well be why.
MAX_ATTEMPTS = 3
RECEIVE_QUEUE = 64  # messages; then the core merges


class StatusSource(Protocol):
    """Whoever knows how the core is: its supervisor, or the channel to the process that has it."""

    index: int  # of this front end
    token: bytes  # that the core expects

    @property
    def status(self) -> CoreStatus: ...

    def subscribe(self, callback: Callable[[CoreStatus], None]) -> Callable[[], None]:
        """Calls it with the status now and with each later one, from any thread. Returns how to unsubscribe."""

    def stop(self) -> None:
        """Ends what the source has started. May be called again."""


class Watcher(Protocol):
    """An event loop that calls `receive` when one of these is readable."""

    def watch(self, fd: int) -> None: ...

    def unwatch(self, fd: int) -> None: ...


@dataclass(slots=True)
class _Waiting:
    submit: Submit
    num_attempts: int = 0  # cores it was sent to


class ProcessClient:
    """An EngineClient: used by one thread at a time, which calls either `step`, or `receive` from an event loop."""

    def __init__(self, source: StatusSource) -> None:
        self._source = source
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._waiting: dict[str, _Waiting] = {}
        self._begun: set[str] = set()
        self._queries: dict[int, Future[Any]] = {}
        self._num_queries = 0
        self._outputs: deque[StepOutputs] = deque()  # received, not yet taken
        self._statuses: deque[CoreStatus] = deque()  # posted by other threads
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._watcher: Watcher | None = None
        self._is_open = True
        self.death: EngineDead | None = None
        self._unsubscribe = source.subscribe(self._post)

    @property
    def status(self) -> CoreStatus:
        """Any thread may ask."""
        return self._source.status

    # ---- EngineClient

    def add(self, submit: Submit) -> None:
        """What the core refuses comes back as a delta with its `error_type`. Raises EngineDead, and InvalidRequest
        for what cannot be sent."""
        if self.death is not None:
            raise EngineDead(str(self.death))
        for i, processor in enumerate(submit.params.logits_processors or ()):
            if callable(processor):
                raise InvalidRequest(
                    f"logits_processors[{i}]: a callable cannot be sent to the engine's process: name one that is "
                    "registered there (request_logits_processors), or use LLM or AsyncEngine in one process",
                    "logits_processors",
                )
        assert submit.request_id not in self._waiting and submit.request_id not in self._begun
        waiting = self._waiting[submit.request_id] = _Waiting(submit)
        if self._socket is not None:
            self._submit(waiting)

    def abort(self, request_ids: Iterable[str]) -> None:
        request_ids = list(request_ids)
        for request_id in request_ids:
            self._waiting.pop(request_id, None)
            self._begun.discard(request_id)
        if self._socket is not None and request_ids:
            self._send(Abort(request_ids))

    def step(self) -> StepOutputs:
        while True:
            self.receive()
            if self._outputs:
                return self._outputs.popleft()
            if not self.has_work():
                return StepOutputs()
            self._wait()

    def has_work(self) -> bool:
        return bool(self._waiting or self._begun or self._outputs)

    def reset_prefix_cache(self) -> bool:
        return bool(self._result(self.query("reset_prefix_cache")))

    def stats(self) -> CoreStats:
        stats = self._result(self.query("stats"))
        assert isinstance(stats, CoreStats)
        return stats

    def shutdown(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self._unsubscribe()
        if self._socket is not None:
            self._send(Goodbye())
            self._close(linger=100)
        self._source.stop()
        self._fail_queries(EngineDead("the engine was shut down"))
        if self._watcher is not None:
            self._watcher.unwatch(self._wake_receiver.fileno())
        self._wake_receiver.close()
        self._wake_sender.close()
        self._context.destroy(linger=100)
        self.death = self.death or EngineDead("the engine was shut down")

    # ---- for an event loop

    def attach(self, watcher: Watcher | None) -> None:
        """Tells `watcher` what to watch, instead of whoever did so before."""
        fds = [self._wake_receiver.fileno()]
        if self._socket is not None:
            fds.append(self._socket.FD)
        for fd in fds:
            if self._watcher is not None:
                self._watcher.unwatch(fd)
            if watcher is not None:
                watcher.watch(fd)
        self._watcher = watcher

    def receive(self, limit: int = 64) -> bool:
        """Takes in what has arrived, without waiting. True if there may be more: ZMQ's descriptor is readable only
        once for any number of messages."""
        if not self._is_open:
            return False
        with suppress(BlockingIOError):
            self._wake_receiver.recv(4096)
        while self._statuses:
            self._take_status(self._statuses.popleft())
        return self._read(limit)

    def take(self) -> list[StepOutputs]:
        """What `receive` has taken in."""
        outputs = list(self._outputs)
        self._outputs.clear()
        return outputs

    def has_arrivals(self) -> bool:
        """Sending may swallow the sign that something can be received: ask afterwards."""
        return bool(self._outputs) or (
            self._socket is not None and bool(int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN)
        )

    def watch(self, seconds: float) -> None:
        """Asked of the core that there is now, if there is one; nobody waits for the answer."""
        if self._socket is not None:
            self.query("watch", seconds)

    def query(self, name: Literal["ping", "stats", "reset_prefix_cache", "watch"], seconds: float = 0.0) -> Future[Any]:
        """Done when the core has answered; fails with Unavailable where there is none."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        if self._socket is None:
            future.set_exception(self.death or EngineStarting(f"the engine is {self.status.state}"))
            return future
        self._num_queries += 1
        self._queries[self._num_queries] = future
        self._send(Query(self._num_queries, name, seconds))
        return future

    # ---- the core comes and goes

    def _post(self, status: CoreStatus) -> None:
        """From any thread."""
        self._statuses.append(status)
        try:
            self._wake_sender.send(b"\0")
        except OSError:  # full: it wakes anyway; closed: nobody listens
            return

    def _take_status(self, status: CoreStatus) -> None:
        if self._socket is not None:
            self._lose(status.reason)
        if status.state == "ready":
            self._connect(status.address)
        elif status.state == "dead" and self.death is None:
            self.death = EngineDead(f"the engine is dead: {status.reason}")
            self._fail(list(self._waiting), self.death)

    def _connect(self, address: str) -> None:
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.IDENTITY, f"{self._source.index}-{os.getpid()}-{secrets.token_hex(4)}".encode())
        self._socket.set(zmq.SNDHWM, 0)  # a core in a long step does not make anybody wait
        self._socket.set(zmq.RCVHWM, RECEIVE_QUEUE)
        self._socket.set(zmq.LINGER, 0)
        self._socket.connect(address)
        if self._watcher is not None:
            self._watcher.watch(self._socket.FD)
        self._send(Hello(self._source.index, os.getpid(), self._source.token))
        for waiting in self._waiting.values():
            self._submit(waiting)

    def _lose(self, reason: str) -> None:
        """The core has died. What it still got out counts."""
        while self._read(RECEIVE_QUEUE):
            pass
        self._close(linger=0)
        _log.warning(
            "the engine's process has died (%s): %d requests end, %d wait", reason, len(self._begun), len(self._waiting)
        )
        error = EngineRestarting(f"the engine's process died ({reason}) while it worked on the request; try again")
        self._fail(list(self._begun), error)
        hopeless = [name for name, waiting in self._waiting.items() if waiting.num_attempts >= MAX_ATTEMPTS]
        self._fail(hopeless, EngineRestarting(f"{MAX_ATTEMPTS} engine processes died before they began the request"))
        self._fail_queries(error)

    def _close(self, linger: int) -> None:
        assert self._socket is not None
        if self._watcher is not None:
            self._watcher.unwatch(self._socket.FD)
        self._socket.close(linger=linger)
        self._socket = None

    def _fail(self, request_ids: list[str], error: Unavailable) -> None:
        for request_id in request_ids:
            self._forget(request_id)
        if request_ids:
            kind, reason = type(error).__name__, int(FinishReason.ERROR)
            deltas = [Delta(name, [], reason, error=str(error), error_type=kind) for name in request_ids]
            nothing_runs = StepStats(num_waiting=len(self._waiting), num_steps=0)
            self._outputs.append(StepOutputs(deltas, nothing_runs))

    def _fail_queries(self, error: Unavailable) -> None:
        queries, self._queries = self._queries, {}
        for future in queries.values():
            future.set_exception(error)

    # ---- messages

    def _submit(self, waiting: _Waiting) -> None:
        waiting.num_attempts += 1
        self._send(waiting.submit)

    def _send(self, message: ToCore) -> None:
        assert self._socket is not None
        self._socket.send(encode(message), zmq.NOBLOCK)

    def _read(self, limit: int) -> bool:
        """Up to `limit` messages. Whether there may be more."""
        if self._socket is None:
            return False
        for _ in range(limit):
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return False
            try:
                self._take(decode_to_frontend(data))
            except MalformedMessage as error:
                _log.error("a malformed message of %d bytes from the core is passed over: %s", len(data), error)
        return True

    def _take(self, message: StepOutputs | Reply) -> None:
        if isinstance(message, Reply):
            future = self._queries.pop(message.query_id, None)
            if future is not None:
                future.set_result(message.value)
            return
        for request_id in message.started:
            self._begin(request_id)
        for delta in message.deltas:
            if delta.finish_reason is not None:
                self._forget(delta.request_id)
            elif delta.request_id not in self._begun:
                self._begin(delta.request_id)
        self._outputs.append(message)

    def _begin(self, request_id: str) -> None:
        if self._waiting.pop(request_id, None) is not None:
            self._begun.add(request_id)

    def _forget(self, request_id: str) -> None:
        self._waiting.pop(request_id, None)
        self._begun.discard(request_id)

    def _wait(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_receiver.fileno(), zmq.POLLIN)
        if self._socket is not None:
            poller.register(self._socket, zmq.POLLIN)
        poller.poll()

    def _result(self, future: Future[Any]) -> Any:
        while not future.done():
            self._wait()
            self.receive()
        return future.result()
