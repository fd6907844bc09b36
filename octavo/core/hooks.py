"""How a feature speaks to the scheduler: a cap says how many tokens now, a gate whether a request may start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from octavo.core.request import Request


class PlanView(Protocol):
    """What caps and gates may see of the step under construction."""

    budget_left: int


class TokenCap(Protocol):
    """Limits the tokens a request gets in this step."""

    def begin(self, plan: PlanView, running: Sequence[Request], waiting: Sequence[Request], is_fair: bool) -> None:
        """Called before each round of a step: the first divides the budget fairly, the second (`is_fair` False) gives
        away what the first left. `waiting` holds those that could start."""

    def __call__(self, request: Request, plan: PlanView) -> int:
        """The most tokens `request` may get now."""


class Gate(Protocol):
    """Holds a waiting request back until what it needs is there."""

    def open(self, request: Request, plan: PlanView) -> bool: ...
