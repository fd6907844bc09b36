"""How a step reaches the devices."""

from __future__ import annotations

from typing import Protocol

from octavo.core.step import StepPlan, StepResult, TokenMasks


class StepHandle(Protocol):
    """A step in flight. Any of the calls may raise what the device raised."""

    plan: StepPlan

    def finish(self, masks: TokenMasks | None = None) -> None:
        """Everything the sampling needs is known now: let it run."""

    def wait(self) -> StepResult: ...


class Executor(Protocol):
    def submit(self, plan: StepPlan) -> StepHandle:
        """Sends the forward out; steps run in the order in which they are submitted."""

    def reset(self) -> None:
        """Steps in flight are dropped and every row is forgotten."""

    def shutdown(self) -> None: ...
