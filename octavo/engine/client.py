"""How a front end reaches a core. The messages are the same whether the core shares its process or not: the client of
one that does not is in `process_client.py`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from octavo.core.messages import CoreStats, StepOutputs, Submit


class Core(Protocol):
    """The core itself, as `engine_core.EngineCore` is."""

    def add(self, submit: Submit) -> None:
        """Raises InvalidRequest."""

    def abort(self, request_ids: Iterable[str]) -> None: ...

    def step(self) -> StepOutputs: ...

    def has_work(self) -> bool: ...

    def reset_prefix_cache(self) -> bool: ...

    def stats(self) -> CoreStats: ...

    def watch(self, seconds: float) -> None: ...

    def shutdown(self) -> None: ...


class EngineClient(Protocol):
    """Used by one thread at a time."""

    def add(self, submit: Submit) -> None:
        """Raises InvalidRequest; the core is unharmed."""

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends requests; unknown ids are passed by, deltas of them may still arrive."""

    def step(self) -> StepOutputs:
        """What has happened since the last call; waits for something if there is work."""

    def has_work(self) -> bool: ...

    def reset_prefix_cache(self) -> bool:
        """Forgets cached prefixes. False while requests hold blocks."""

    def stats(self) -> CoreStats:
        """The core at this moment."""

    def watch(self, seconds: float) -> None:
        """For so long, statistics say what each request got of each step."""

    def shutdown(self) -> None:
        """Gives back what the core holds. May be called again."""


class InlineClient:
    """A core in this process and on this thread: `step` computes."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def add(self, submit: Submit) -> None:
        self.core.add(submit)

    def abort(self, request_ids: Iterable[str]) -> None:
        self.core.abort(request_ids)

    def step(self) -> StepOutputs:
        return self.core.step()

    def has_work(self) -> bool:
        return self.core.has_work()

    def reset_prefix_cache(self) -> bool:
        return self.core.reset_prefix_cache()

    def stats(self) -> CoreStats:
        return self.core.stats()

    def watch(self, seconds: float) -> None:
        self.core.watch(seconds)

    def shutdown(self) -> None:
        self.core.shutdown()
