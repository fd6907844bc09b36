"""One step of the engine, as plain data: what to do (scheduler to runner) and what came of it (runner to scheduler).

A plan carries counts, never values that only the device knows: last tokens, lengths, positions and slots live in the
device's row table and are advanced there, so the next step can be planned before this one's tokens are known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from octavo.core.outputs import TokenLogprobs
from octavo.core.params import SamplingParams
from octavo.core.prompt_logprobs import PromptRows

if TYPE_CHECKING:
    import numpy as np

BlockIds = tuple[list[int], ...]  # one list a cache group

MAX_PREFIX_GROUPS = 32  # of a step: each takes part in the bounds of a captured kernel


@dataclass(slots=True)
class NewRow:
    """A request that gets a row: newly admitted, or resumed after preemption."""

    request_id: str
    token_ids: list[int]  # every token known so far (prompt and, when resumed, outputs)
    num_prompt_tokens: int
    num_computed_tokens: int  # already in the cache
    block_ids: BlockIds
    params: SamplingParams
    eos_token_ids: frozenset[int]
    seed: int  # of this request's random numbers; fixed over its life


@dataclass(slots=True)
class StepPlan:
    """What one step does. `num_scheduled_tokens` is in batch order."""

    step_id: int
    num_scheduled_tokens: dict[str, int]
    new_rows: list[NewRow] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)  # rows to drop first: finished or preempted
    new_block_ids: dict[str, BlockIds] = field(default_factory=dict)  # appended to the tables of running rows
    skipped_tokens: dict[str, int] = field(default_factory=dict)  # found in the cache since: advance without computing
    sampled: list[str] = field(default_factory=list)  # rows whose last token gets a successor, in any order
    page_copies: list[tuple[int, int, int]] = field(
        default_factory=list
    )  # (group, from block, to block), before the forward
    shared_prefix: list[tuple[list[str], int]] = field(
        default_factory=list
    )  # rows of one token and how many leading blocks they share; nothing writes to these in this step
    scored: dict[str, tuple[int, int]] = field(default_factory=dict)  # positions whose log-probabilities are wanted

    @property
    def total_tokens(self) -> int:
        return sum(self.num_scheduled_tokens.values())


@dataclass(slots=True)
class TokenMasks:
    """Which tokens some of a plan's sampled rows may get; the others may get any."""

    places: list[int]  # indices into `plan.sampled`, ascending
    bits: np.ndarray  # int32 [len(places), ceil(vocabulary / 32)]: token t is bit t % 32 of word t // 32


@dataclass(slots=True)
class StepResult:
    """What came of a plan, parallel to `plan.sampled`."""

    step_id: int
    token_ids: list[int]
    logprobs: dict[str, TokenLogprobs] = field(default_factory=dict)  # of the requests that asked
    prompt_rows: dict[str, PromptRows] = field(default_factory=dict)  # of the plan's `scored`
    failed: dict[str, str] = field(default_factory=dict)  # rows whose own forward or sampling went wrong: why
    refused: dict[str, str] = field(default_factory=dict)  # rows whose own wishes make it impossible to go on: why
