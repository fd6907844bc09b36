"""A core on a thread of its own, in the front end's process: commands go in, what its steps brought comes out."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from octavo.core.messages import CoreStats, StepOutputs
from octavo.engine.client import EngineClient
from octavo.errors import EngineDead

_log = logging.getLogger(__name__)

Result = TypeVar("Result")
Command = Callable[[EngineDead | None], None]  # given a death, it fails with it


class CoreThread:
    """Owns the client: nobody else calls it. `on_outputs` and `on_death` are called on this thread."""

    def __init__(
        self,
        client: EngineClient,
        on_outputs: Callable[[StepOutputs], None],
        on_death: Callable[[EngineDead], None],
    ) -> None:
        self._client, self._on_outputs, self._on_death = client, on_outputs, on_death
        self._commands: deque[Command] = deque()
        self._wake = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="octavo-core", daemon=True)
        self._thread.start()

    def send(self, command: Callable[[EngineClient], Result]) -> Future[Result]:
        """Runs `command` between two steps. Commands run in the order they were sent."""
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()  # from here on whoever waits for it cannot cancel it

        def run(death: EngineDead | None) -> None:
            try:
                if death is not None:
                    raise death
                future.set_result(command(self._client))
            except Exception as error:
                future.set_exception(error)

        with self._wake:
            if not self._is_stopping:
                self._commands.append(run)
                self._wake.notify()
                return future
        run(self._death())
        return future

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread needs no event loop."""

    def reset_prefix_cache(self) -> Future[bool]:
        return self.send(lambda client: client.reset_prefix_cache())

    def stats(self) -> Future[CoreStats]:
        return self.send(lambda client: client.stats())

    def stop(self) -> None:
        """Ends after the step at hand, and shuts the core down. May be called again."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    @staticmethod
    def _death() -> EngineDead:
        return EngineDead("the engine was shut down, or has died")

    def _run(self) -> None:
        client = self._client
        try:
            while True:
                with self._wake:
                    while not (self._commands or self._is_stopping or client.has_work()):
                        self._wake.wait()
                    if self._is_stopping:
                        break
                    commands = list(self._commands)
                    self._commands.clear()
                for command in commands:
                    command(None)
                if client.has_work():
                    self._on_outputs(client.step())
        except Exception as error:
            _log.exception("the engine core has died")
            death = EngineDead(f"the engine core has died: {type(error).__name__}: {error}")
            death.__cause__ = error
            self._on_death(death)
        finally:
            with self._wake:
                self._is_stopping = True
                commands = list(self._commands)
                self._commands.clear()
            for command in commands:  # nobody may wait for ever
                command(self._death())
            try:
                client.shutdown()
            except Exception:
                _log.exception("the engine core could not be shut down in order")
