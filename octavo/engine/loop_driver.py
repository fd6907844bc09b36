"""A ProcessClient on an event loop: no thread of its own, everything happens when the loop finds something to read."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from octavo.core.messages import CoreStats, StepOutputs
from octavo.engine.client import EngineClient
from octavo.engine.process_client import ProcessClient
from octavo.errors import EngineDead

Result = TypeVar("Result")


class LoopDriver:
    """What `CoreThread` is for an inline core. All but `stop` belongs to the loop."""

    def __init__(
        self,
        client: ProcessClient,
        on_outputs: Callable[[StepOutputs], None],
        on_death: Callable[[EngineDead], None],
    ) -> None:
        self._client, self._on_outputs, self._on_death = client, on_outputs, on_death
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: int | None = None
        self._is_due = False  # a pump is on the loop's list
        self._has_died = False

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:
            self._client.attach(None)
            self._loop, self._thread, self._is_due = loop, threading.get_ident(), False
            self._client.attach(self)
        self._pump()

    def send(self, command: Callable[[EngineClient], Result]) -> Future[Result]:
        """Runs `command` at once."""
        future: Future[Result] = Future()
        try:
            future.set_result(command(self._client))
        except Exception as error:
            future.set_exception(error)
        self._look_again()
        return future

    def reset_prefix_cache(self) -> Future[bool]:
        return self._query("reset_prefix_cache")

    def stats(self) -> Future[CoreStats]:
        return self._query("stats")

    def stop(self) -> None:
        """From any thread. Waits until the core has ended."""
        loop, is_elsewhere = self._loop, self._thread != threading.get_ident()
        if loop is not None and is_elsewhere and loop.is_running():
            done = threading.Event()

            def stop() -> None:
                try:
                    self._client.shutdown()
                finally:
                    done.set()

            try:
                loop.call_soon_threadsafe(stop)
            except RuntimeError:  # closed meanwhile
                self._client.shutdown()
            else:
                done.wait()
        else:
            self._client.shutdown()

    # ---- the loop, as the client sees it

    def watch(self, fd: int) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.add_reader(fd, self._pump)

    def unwatch(self, fd: int) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(fd)

    def _pump(self) -> None:
        self._is_due = False
        may_have_more = self._client.receive()
        for outputs in self._client.take():
            self._on_outputs(outputs)
        if self._client.death is not None and not self._has_died:
            self._has_died = True
            self._on_death(self._client.death)
        if may_have_more:
            self._pump_soon()
        else:
            self._look_again()

    def _look_again(self) -> None:
        if self._client.has_arrivals():
            self._pump_soon()

    def _pump_soon(self) -> None:
        if not self._is_due and self._loop is not None and not self._loop.is_closed():
            self._is_due = True
            self._loop.call_soon(self._pump)

    def _query(self, name: Any) -> Future[Any]:
        future = self._client.query(name)
        self._look_again()
        return future
