"""Starts the core's process, watches it and starts it again; the same for several front ends of one core.

Supervisor      a thread: start → ready → died → (back-off) → start …, and a status that anybody may read
FrontendGroup   more processes that answer requests, each told every status
ParentSource    the status, as such a process gets it
"""

from __future__ import annotations

import logging
import os
import secrets
import selectors
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq

import octavo.errors
from octavo.config import env
from octavo.config.engine_config import EngineConfig, encode_config
from octavo.core.messages import (
    CoreFacts,
    CoreState,
    CoreStatus,
    Failed,
    Heartbeat,
    LaunchCore,
    LaunchFrontend,
    Ready,
    Stop,
)
from octavo.core.wire import MalformedMessage
from octavo.engine.control import Channel, Child, parent_channel, start_child
from octavo.errors import CheckpointError, ConfigurationError, EngineDead, OctavoError, OutOfMemory

_log = logging.getLogger(__name__)

STEP_TIMEOUT = "OCTAVO_EXECUTE_MODEL_TIMEOUT_SECONDS"
MAX_FAILED_STARTS = 5  # in a row; then the engine is dead
_STOP_SECONDS = 5.0  # for a step to end; then the core is killed
_HEALTHY_SECONDS = 30.0  # a core that lived so long starts the back-off anew
FIRST_DELAY = 0.5  # seconds after the second death in a row; then it doubles
_MAX_DELAY = 30.0
_TICK = 0.5  # seconds between two looks at a core that says nothing
_HEARTBEAT = 15.0  # seconds between two questions whether it is alive
_MAX_SOCKET_PATH = 100  # bytes; systems allow 104 to 108
# Trying again changes nothing, unless the machine was different when the last core started.
_HOPELESS = (ConfigurationError, CheckpointError, OutOfMemory)


class Announced:
    """A status that any thread may read, and be told of: everybody sees the same order."""

    def __init__(self, status: CoreStatus) -> None:
        self._status = status
        self._callbacks: list[Callable[[CoreStatus], None]] = []
        self._lock = threading.RLock()

    @property
    def status(self) -> CoreStatus:
        return self._status

    def subscribe(self, callback: Callable[[CoreStatus], None]) -> Callable[[], None]:
        with self._lock:
            self._callbacks.append(callback)
            callback(self._status)

        def unsubscribe() -> None:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)

        return unsubscribe

    def _announce(self, state: CoreStatus) -> None:
        with self._lock:
            self._status = state
            for callback in list(self._callbacks):
                callback(state)


class Supervisor(Announced):
    """Owns the core's process and the private directory of its sockets. The process starts at once, and imports what
    it needs while its configuration is still being made; `configure` or `give_up` must follow. Raises
    ConfigurationError."""

    index = 0

    def __init__(self) -> None:
        self.token = secrets.token_bytes(16)
        self.failure: OctavoError | None = None  # why the engine is dead
        self.step_timeout = env.read_seconds(STEP_TIMEOUT)  # 0: none
        super().__init__(CoreStatus("starting", 1, "the engine's process starts"))
        self._config: bytes | None = None
        self._is_stopping = self._is_draining = False
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self.directory = _private_directory()  # for sockets: only this user may enter
        self._thread = threading.Thread(target=self._run, name="octavo-supervisor", daemon=True)
        self._thread.start()

    def configure(self, config: EngineConfig) -> None:
        """Raises ConfigurationError where it cannot be sent."""
        self._config = encode_config(config)
        self._wake()

    def give_up(self, error: Exception) -> None:
        """There will be no configuration."""
        self._die(error if isinstance(error, OctavoError) else EngineDead(f"{type(error).__name__}: {error}"))
        self._is_stopping = True
        self._wake()

    def drain(self) -> None:
        """From now on a core that ends is not replaced."""
        self._is_draining = True

    def stop(self) -> None:
        """Returns when the core has ended and its directory is gone."""
        self._is_stopping = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # ---- the thread

    def _run(self) -> None:
        num_failed_starts = num_deaths = incarnation = 0
        try:
            while not self._is_stopping:
                incarnation += 1
                was_ready, reason, error = self._run_core(incarnation)
                if self._is_stopping:
                    break
                num_failed_starts = 0 if was_ready is not None else num_failed_starts + 1
                num_deaths = 1 if was_ready is not None and was_ready >= _HEALTHY_SECONDS else num_deaths + 1
                has_served = self._status.facts is not None
                if self._is_draining:
                    self._die(EngineDead(f"the engine's process ended while it was shut down ({reason})"))
                    break
                if num_failed_starts >= MAX_FAILED_STARTS or (isinstance(error, _HOPELESS) and not has_served):
                    if error is None:
                        error = EngineDead(f"the engine's process could not be started, {reason}")
                    self._die(error)
                    break
                self._set("restarting" if has_served else "starting", incarnation + 1, reason)
                delay = _delay(num_deaths)
                _log.warning("the engine's process has died (%s): another one starts in %.1f s", reason, delay)
                self._sleep(delay)
        except Exception as unexpected:
            _log.exception("the engine's process cannot be watched any more")
            self._die(EngineDead(f"{type(unexpected).__name__}: {unexpected}"))
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)
            self._wake_receiver.close()
            self._wake_sender.close()

    def _run_core(self, incarnation: int) -> tuple[float | None, str, OctavoError | None]:
        """One process from start to end: (seconds that it was ready, None if it never was; why it ended; the error
        that it named)."""
        try:
            child = start_child("octavo.engine.core_process", [self.directory])
        except OSError as refused:  # no process, no descriptors
            return None, str(refused), None
        self._set(self._status.state, incarnation, self._status.reason, pid=child.pid)
        ready_at: float | None = None
        failed: Failed | None = None
        is_configured = False
        pulse = _Pulse(child.channel)
        with selectors.DefaultSelector() as selector:
            selector.register(child.channel, selectors.EVENT_READ)
            selector.register(self._wake_receiver, selectors.EVENT_READ)
            while True:
                if self._is_stopping:
                    child.channel.send(Stop())
                    child.end(_STOP_SECONDS if is_configured else 0.0)  # before that it has nothing to bring to an end
                    return None, "stopped", None
                if not is_configured and self._config is not None:
                    is_configured = True
                    address, level = self._address(incarnation), logging.getLogger("octavo").getEffectiveLevel()
                    child.channel.send(LaunchCore(self._config, address, self.token, level))
                readable = [key.fileobj for key, _ in selector.select(_TICK)]
                if ready_at is not None and pulse.has_stopped(self.step_timeout):
                    child.process.kill()
                if self._wake_receiver in readable:
                    self._wake_receiver.recv(4096)
                if child.channel in readable:
                    try:
                        message = child.channel.receive()
                    except MalformedMessage as error:
                        _log.error("the engine's process talks nonsense: %s", error)
                        child.process.kill()
                        message = None
                    if isinstance(message, Ready):
                        ready_at = time.monotonic()
                        facts, address = message.facts, message.address
                        self._set("ready", incarnation, pid=child.pid, address=address, facts=facts)
                    elif isinstance(message, Heartbeat):
                        pulse.answered(message)
                    elif isinstance(message, Failed):
                        failed = message
                    elif message is None:
                        break
                elif child.process.poll() is not None:
                    break
        child.end(1.0)
        Path(self.directory, f"core-{incarnation}").unlink(missing_ok=True)
        lived = None if ready_at is None else time.monotonic() - ready_at
        if failed is not None:
            named = _named_error(failed)
            return lived, str(named), named
        if pulse.is_dead:
            return lived, f"a step took more than {self.step_timeout:g} s, {STEP_TIMEOUT}", None
        return lived, child.why_ended(), None

    def _address(self, incarnation: int) -> str:
        """A new one for each process, so that nothing meant for one reaches another."""
        path = f"{self.directory}/core-{incarnation}"
        if zmq.has("ipc") and len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
            return f"ipc://{path}"
        return "tcp://127.0.0.1:*"

    def _set(
        self,
        state: CoreState,
        incarnation: int,
        reason: str = "",
        *,
        pid: int | None = None,
        address: str = "",
        facts: CoreFacts | None = None,
    ) -> None:
        self._announce(CoreStatus(state, incarnation, reason, pid, address, facts or self._status.facts))

    def _die(self, error: OctavoError) -> None:
        _log.log(logging.INFO if self._is_draining else logging.ERROR, "the engine is dead: %s", error)
        self.failure = error
        self._set("dead", self._status.incarnation, str(error))

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._is_stopping and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))

    def _wake(self) -> None:
        try:
            self._wake_sender.send(b"\0")
        except OSError:
            return


class _Pulse:
    """Whether a core's loop still turns: asked every now and then, it must answer between two steps."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._number = 0
        self._is_asked = False
        self._waited = 0.0  # seconds, since it was asked or since it answered
        self._looked = time.monotonic()
        self.is_dead = False

    def answered(self, heartbeat: Heartbeat) -> None:
        if self._is_asked and heartbeat.number == self._number:
            self._is_asked, self._waited = False, 0.0

    def has_stopped(self, limit: float) -> bool:
        """Called at least every _TICK seconds, or time stands still: a suspended machine is no reason to kill."""
        now = time.monotonic()
        self._waited += min(now - self._looked, 2 * _TICK)
        self._looked = now
        if not limit or self.is_dead:
            return False
        if self._is_asked:
            self.is_dead = self._waited > limit
        elif self._waited >= min(_HEARTBEAT, limit / 4):
            self._number += 1
            self._is_asked, self._waited = True, 0.0
            self._channel.send(Heartbeat(self._number))
        return self.is_dead


class ParentSource(Announced):
    """In a front end that another process started: `launch` is what it was given, statuses follow. Ends this process
    when that one dies. `on_stop` is called on a thread when that one says `Stop`; unset, this process gets a SIGTERM.
    """

    def __init__(self, fd: int) -> None:
        self._channel: Channel = parent_channel(fd)
        launch = self._channel.receive()
        if not isinstance(launch, LaunchFrontend):
            raise OctavoError("a front end was started by nobody that knows how")
        self.launch, self.index, self.token = launch, launch.index, launch.token
        super().__init__(CoreStatus("starting", 1))
        self.on_stop: Callable[[], None] = _terminate
        threading.Thread(target=self._listen, name="octavo-parent", daemon=True).start()

    def drain(self) -> None:
        """The core is not this process's."""

    def stop(self) -> None:
        """The core is not this process's."""

    def _listen(self) -> None:
        while True:
            try:
                message = self._channel.receive()
            except MalformedMessage:
                message = None
            if isinstance(message, CoreStatus):
                self._announce(message)
            elif isinstance(message, Stop):
                self.on_stop()
            else:
                os._exit(1)


class FrontendGroup:
    """`count` processes of `python -m module FD`, each of which makes a ParentSource of FD. One that dies is replaced.
    `settings` reach them as they are; `pass_fds` stay open in them, a listening socket for instance."""

    def __init__(
        self,
        supervisor: Supervisor,
        config: EngineConfig,
        module: str,
        count: int,
        settings: bytes = b"",
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._supervisor, self._config = supervisor, encode_config(config)
        self._module, self._count, self._settings, self._pass_fds = module, count, settings, tuple(pass_fds)
        self._children: dict[int, Child] = {}
        self._lock = threading.Lock()
        self._is_stopping = False
        for index in range(count):
            self._start(index)
        self._unsubscribe = supervisor.subscribe(self._tell)
        self._threads = [
            threading.Thread(target=self._keep, args=(index,), name=f"octavo-frontend-{index}", daemon=True)
            for index in range(count)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pids(self) -> list[int]:
        with self._lock:
            return [self._children[index].pid for index in sorted(self._children)]

    def stop(self, seconds: float, is_urgent: Callable[[], bool] = lambda: False) -> None:
        """`Stop` to all of them; those that have not ended after `seconds`, or as soon as it `is_urgent`, are killed.
        May be called again."""
        with self._lock:
            self._is_stopping = True
            children = list(self._children.values())
        self._unsubscribe()
        for child in children:
            child.channel.send(Stop())
        end = time.monotonic() + seconds
        while any(child.process.poll() is None for child in children) and time.monotonic() < end and not is_urgent():
            time.sleep(0.02)
        for child in children:
            child.end(0.0)
        for thread in self._threads:
            thread.join()

    def _start(self, index: int) -> Child:
        child = start_child(self._module, pass_fds=self._pass_fds)
        level = logging.getLogger("octavo").getEffectiveLevel()
        child.channel.send(
            LaunchFrontend(index, self._count, self._config, self._settings, self._supervisor.token, level)
        )
        self._children[index] = child
        return child

    def _tell(self, status: CoreStatus) -> None:
        with self._lock:
            for child in self._children.values():
                child.channel.send(status)

    def _keep(self, index: int) -> None:
        num_deaths = 0
        while True:
            started = time.monotonic()
            child = self._children[index]
            child.process.wait()
            with self._lock:
                if self._is_stopping:
                    return
            child.channel.close()
            num_deaths = 1 if time.monotonic() - started >= _HEALTHY_SECONDS else num_deaths + 1
            delay = _delay(num_deaths)
            _log.warning("front end %d has died (%s): another one starts in %.1f s", index, child.why_ended(), delay)
            time.sleep(delay)
            with self._lock:
                if self._is_stopping:
                    return
                self._start(index).channel.send(self._supervisor.status)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _delay(num_deaths: int) -> float:
    """Seconds until the next start; the first death costs nothing."""
    return 0.0 if num_deaths <= 1 else min(FIRST_DELAY * 2.0 ** min(num_deaths - 2, 20), _MAX_DELAY)


def _named_error(failed: Failed) -> OctavoError:
    """What the core raised, as far as it says what a user can change."""
    kind = getattr(octavo.errors, failed.error_type, None)
    if isinstance(kind, type) and issubclass(kind, _HOPELESS):
        return kind(failed.message)
    return EngineDead(f"{failed.error_type}: {failed.message}")


def _private_directory() -> str:
    """Made anew, its path short enough for sockets in it."""
    path = tempfile.mkdtemp(prefix="octavo-")
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH - 12 and Path("/tmp").is_dir():
        try:
            other = tempfile.mkdtemp(prefix="octavo-", dir="/tmp")
        except OSError:
            return path
        os.rmdir(path)
        return other
    return path
