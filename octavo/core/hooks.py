"""How a feature speaks to the scheduler and to the loop: a cap says how many tokens now, a gate whether a request may
start, a constraint which tokens it may get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from octavo.core.request import Request
from octavo.core.step import StepPlan, TokenMasks


class PlanView(Protocol):
    """What caps and gates may see of the step under construction."""

    token_budget: int  # of the whole step
    budget_left: int
    num_scheduled: dict[str, int]  # granted so far


@dataclass(slots=True)
class Round:
    """Who competes for a step's tokens. The first round divides them fairly; the second gives away what it left."""

    prompts: Sequence[Request]  # running, with more than one token to compute
    candidates: Sequence[Request]  # waiting, and could start
    num_decoding: int  # running, with one token to compute
    is_fair: bool


class TokenCap(Protocol):
    """Limits the tokens a request with more than one to compute gets in this step."""

    def begin(self, plan: PlanView, competition: Round) -> None:
        """Called before each round in which there are prompts or candidates."""

    def __call__(self, request: Request, plan: PlanView) -> int:
        """The most tokens `request` may get now."""


class Gate(Protocol):
    """Holds a waiting request back until what it needs is there."""

    def open(self, request: Request, plan: PlanView) -> bool: ...


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that cannot go on. With an `error_type` of octavo.errors it never could have."""

    request_id: str
    error: str
    field: str | None = None
    error_type: str | None = None


class Constraint(Protocol):
    """Says which tokens some requests may get. False while none of those it has been given is constrained: then
    nothing but `add` is called. Belongs to the core's thread."""

    def __bool__(self) -> bool: ...

    def add(self, request: Request) -> None:
        """Every request, before it is queued. Raises InvalidRequest."""

    def masks(self, plan: StepPlan) -> TokenMasks | None:
        """For the sampling of `plan`: all that comes before it is known. Runs while the device computes."""

    def refusals(self) -> list[Refusal]:
        """Who cannot go on, each told once."""

    def wait(self, seconds: float) -> None:
        """There is nothing to compute: until a gate may have opened, or so long."""

    def shutdown(self) -> None: ...
