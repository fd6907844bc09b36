"""The core's loop behind a ZMQ socket: requests of front ends in, outputs out, between steps and without waiting.

One thread does it all. A front end that stops reading, dies or talks nonsense is no trouble of the others'.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import zmq

from octavo.core.messages import (
    Abort,
    CoreStats,
    Delta,
    Goodbye,
    Hello,
    Query,
    Reply,
    StepOutputs,
    Submit,
)
from octavo.core.request import FinishReason
from octavo.core.wire import MalformedMessage, decode_to_core, encode, submitted_id
from octavo.engine.client import Core
from octavo.engine.outbox import Outbox, flush_all
from octavo.errors import InvalidRequest

_log = logging.getLogger(__name__)

SEND_QUEUE = 64  # messages for one front end; then its outputs merge
_LOOK_ROUND = 0.05  # seconds: while steps run, how often to see whether front ends live
_RETRY = 0.02  # seconds until a front end that did not read is tried again
_STATS_INTERVAL = 0.2  # seconds between counters for front ends that a step brought nothing else
MAX_WATCH = 60.0  # seconds: the longest that one message keeps the core telling shares
_MAX_MESSAGES = 1000  # taken in between two steps

_CAN_WATCH = hasattr(os, "pidfd_open")


class ServedCore(Core, Protocol):
    """A core that tells when requests leave the queue."""

    on_start: Callable[[list[str]], None]


@dataclass(eq=False)
class _Frontend:
    index: int
    pid: int
    outbox: Outbox
    pidfd: int | None = None  # readable once the process has ended
    requests: set[str] = field(default_factory=set)  # live in the core
    next_stats: float = 0.0


class CoreServer:
    """`router` is bound, and was made by `open_router`. `run` returns after `stop`, or when `drain` is done; both may
    be called from any thread or signal handler."""

    def __init__(self, core: ServedCore, router: zmq.Socket[bytes], token: bytes, vocab_size: int) -> None:
        self._core, self._router, self._token, self._vocab_size = core, router, token, vocab_size
        self._frontends: dict[bytes, _Frontend] = {}  # by ZMQ identity
        self._owners: dict[str, _Frontend] = {}  # by request id
        self._unreachable: set[bytes] = set()  # front ends whose connection is closed
        self._calls: deque[Callable[[], object]] = deque()
        self._is_stopping = self._is_draining = False
        self._wake_receiver, self._wake_sender = socket.socketpair()
        for end in (self._wake_receiver, self._wake_sender):
            end.setblocking(False)
        core.on_start = self._announce

    def stop(self) -> None:
        """After the step at hand."""
        self._is_stopping = True
        self.wake()

    def call(self, function: Callable[[], object]) -> None:
        """Between two steps, soon."""
        self._calls.append(function)
        self.wake()

    def drain(self) -> None:
        """Finishes what the core has accepted. What comes from now on is left unanswered: its front end keeps it."""
        self._is_draining = True
        self.wake()

    def wake(self) -> None:
        try:
            self._wake_sender.send(b"\0")
        except OSError:  # full: it wakes anyway; closed: it has ended
            return

    def run(self) -> None:
        next_look = 0.0
        while True:
            while self._calls:
                self._calls.popleft()()
            self._receive()
            while self._unreachable:
                self._drop(self._unreachable.pop(), "is not connected any more")
            if self._is_stopping:
                break
            if self._core.has_work():
                self._deliver(self._core.step())
                now = time.monotonic()
                if now >= next_look:
                    next_look = now + _LOOK_ROUND
                    flush_all([frontend.outbox for frontend in self._frontends.values()])
                    self._wait(0)
            else:
                has_sent = flush_all([frontend.outbox for frontend in self._frontends.values()])
                if self._unreachable:
                    continue
                if has_sent and self._is_draining:
                    break
                self._wait(None if has_sent else _RETRY)
        for frontend in list(self._frontends.values()):
            frontend.outbox.flush()
            self._forget(frontend)
        self._wake_receiver.close()
        self._wake_sender.close()

    # ---- in

    def _wait(self, seconds: float | None) -> None:
        """Until something happens. Looks after front ends, and empties the wake-up pipe."""
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._wake_receiver.fileno(), zmq.POLLIN)
        for frontend in self._frontends.values():
            if frontend.pidfd is not None:
                poller.register(frontend.pidfd, zmq.POLLIN)
        if seconds is None and not _CAN_WATCH and self._frontends:
            seconds = 0.5
        events = dict(poller.poll(None if seconds is None else int(seconds * 1000)))
        if self._wake_receiver.fileno() in events:
            with suppress(BlockingIOError):
                self._wake_receiver.recv(4096)
        for identity, frontend in list(self._frontends.items()):
            has_ended = frontend.pidfd in events if _CAN_WATCH else not _is_alive(frontend.pid)
            if has_ended:
                self._drop(identity, "has died")

    def _receive(self) -> None:
        for _ in range(_MAX_MESSAGES):
            try:
                identity, *parts = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            data = b"".join(parts)
            try:
                message = decode_to_core(data)
            except MalformedMessage as error:
                self._refuse(identity, data, error)
                continue
            frontend = self._frontends.get(identity)
            if isinstance(message, Hello):
                self._welcome(identity, message)
            elif frontend is None:
                _log.warning("a message of nobody that has introduced himself is passed over")
            elif isinstance(message, Submit):
                self._add(frontend, message)
            elif isinstance(message, Abort):
                self._core.abort([name for name in message.request_ids if self._owners.get(name) is frontend])
            elif isinstance(message, Query):
                frontend.outbox.put_reply(Reply(message.query_id, self._answer(message)))
            else:
                assert isinstance(message, Goodbye)
                self._drop(identity, "has left")

    def _refuse(self, identity: bytes, data: bytes, error: MalformedMessage) -> None:
        _log.warning("a malformed message of %d bytes is refused: %s", len(data), error)
        frontend, request_id = self._frontends.get(identity), submitted_id(data)
        if frontend is not None and request_id is not None:
            self._put_error(frontend, request_id, InvalidRequest(f"malformed request: {error}"))

    def _welcome(self, identity: bytes, hello: Hello) -> None:
        if hello.token != self._token or identity in self._frontends:
            _log.warning("a front end that does not belong here is passed over")
            return
        pidfd = None
        if _CAN_WATCH:
            try:
                pidfd = os.pidfd_open(hello.pid)
            except OSError:
                return  # it has ended already
        self._frontends[identity] = _Frontend(hello.frontend, hello.pid, Outbox(self._sender(identity)), pidfd)
        _log.debug("front end %d (process %d) has come", hello.frontend, hello.pid)

    def _add(self, frontend: _Frontend, submit: Submit) -> None:
        if self._is_draining:
            return
        try:
            ids = submit.prompt_token_ids
            if not ids or min(ids) < 0 or max(ids) >= self._vocab_size:
                raise InvalidRequest("the prompt must have token ids, all of them of the model's vocabulary", "prompt")
            self._core.add(submit)
        except InvalidRequest as error:
            self._put_error(frontend, submit.request_id, error)
        except Exception as error:  # ours, but no reason to fail the others
            _log.exception("request %s could not be added", submit.request_id)
            self._put_error(frontend, submit.request_id, error)
        else:
            frontend.requests.add(submit.request_id)
            self._owners[submit.request_id] = frontend

    def _answer(self, query: Query) -> bool | CoreStats:
        if query.name == "ping":
            return True
        if query.name == "watch":
            self._core.watch(min(query.seconds, MAX_WATCH))
            return True
        if query.name == "reset_prefix_cache":
            return self._core.reset_prefix_cache()
        frontends = sorted(frontend.index for frontend in self._frontends.values())
        return msgspec.structs.replace(self._core.stats(), frontends=frontends)

    def _drop(self, identity: bytes, why: str) -> None:
        frontend = self._frontends.pop(identity, None)
        if frontend is None:
            return
        if frontend.requests:
            _log.warning("front end %d %s: %d requests end", frontend.index, why, len(frontend.requests))
        self._core.abort(list(frontend.requests))
        self._forget(frontend)

    def _forget(self, frontend: _Frontend) -> None:
        for request_id in frontend.requests:
            self._owners.pop(request_id, None)
        frontend.requests.clear()
        if frontend.pidfd is not None:
            os.close(frontend.pidfd)

    # ---- out

    def _deliver(self, outputs: StepOutputs) -> None:
        owners, stats = self._owners, outputs.stats
        deltas: dict[_Frontend, list[Delta]] = {}
        for delta in outputs.deltas:
            owner = owners.get(delta.request_id)
            if owner is None:
                continue  # its front end has gone
            if delta.finish_reason is not None:
                del owners[delta.request_id]
                owner.requests.discard(delta.request_id)
            try:
                deltas[owner].append(delta)
            except KeyError:
                deltas[owner] = [delta]
        now = time.monotonic() if len(self._frontends) > len(deltas) else 0.0
        for frontend in list(self._frontends.values()):
            own = deltas.get(frontend)
            if own is not None:
                frontend.outbox.put(StepOutputs(own, stats))
            elif stats is not None:
                frontend.outbox.put_stats(stats)
                if now >= frontend.next_stats:
                    frontend.next_stats = now + _STATS_INTERVAL
                    frontend.outbox.flush()

    def _announce(self, request_ids: list[str]) -> None:
        by_owner: dict[_Frontend, list[str]] = {}
        for request_id in request_ids:
            owner = self._owners.get(request_id)
            if owner is not None:
                by_owner.setdefault(owner, []).append(request_id)
        for owner, started in by_owner.items():
            owner.outbox.put(StepOutputs(started=started))

    def _put_error(self, frontend: _Frontend, request_id: str, error: Exception) -> None:
        kind = type(error).__name__ if isinstance(error, InvalidRequest) else None
        delta = Delta(
            request_id,
            [],
            finish_reason=int(FinishReason.ERROR),
            error=str(error) if kind else f"{type(error).__name__}: {error}",
            error_type=kind,
            error_field=error.field if isinstance(error, InvalidRequest) else None,
        )
        frontend.outbox.put(StepOutputs([delta]))

    def _sender(self, identity: bytes) -> Callable[[StepOutputs | Reply], bool]:
        def send(message: StepOutputs | Reply) -> bool:
            try:
                self._router.send_multipart((identity, encode(message)), zmq.NOBLOCK)
            except zmq.Again:
                return False
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                self._unreachable.add(identity)
            return True

        return send


def open_router(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    """The core's end: knows each front end by its identity, and says so instead of waiting when one does not read."""
    router = context.socket(zmq.ROUTER)
    router.set(zmq.ROUTER_MANDATORY, 1)
    router.set(zmq.SNDHWM, SEND_QUEUE)
    router.set(zmq.LINGER, 500)  # milliseconds at the end for what is under way
    router.bind(address)
    return router


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
