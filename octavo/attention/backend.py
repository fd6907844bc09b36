"""The seam between layers, the runner and attention kernels: what a step looks like, and what a backend must do.

Shapes: T tokens of the step, R rows, N query heads, K key/value heads, H head size, B blocks of a table.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

SHARED_PREFIX = "shared_prefix"  # in a step's extras: an `ops.attention.PrefixGroups`, where there are such rows


@dataclass(frozen=True)
class AttentionQuery:
    """What a layer needs of a backend; `why_not` answers it."""

    head_dim: int
    num_heads: int
    num_kv_heads: int
    block_size: int
    dtype: str
    cache_dtype: str
    window: int | None = None  # tokens visible to a query, itself included
    soft_cap: float | None = None
    sinks: bool = False
    capability: tuple[int, int] | None = None  # of the device, where it has one


@dataclass(frozen=True)
class AttentionCall:
    """The constants of one layer's attention."""

    scale: float
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None
    soft_cap: float | None = None
    sinks: torch.Tensor | None = None  # [N]: logits that take part in every softmax, without values


@dataclass(slots=True)
class GroupStep:
    """One cache group's share of a step."""

    block_table: torch.Tensor  # [R, B] int32; empty places hold block 0, the null block
    slots: torch.Tensor  # [T] int64: block * block_size + offset of each token of the step
    plan: Any = None  # made by the group's backend, once a step


@dataclass(slots=True)
class StepContext:
    """Everything a forward may read of its step. Passed down as `forward(hidden, step)`; layers never keep it.

    Rows are in batch order; row r's tokens are query_start[r] : query_start[r + 1]. `query_lens` and `max_seq_lens`
    are what the host knows without asking the device: exact counts, and upper bounds of `seq_lens`.
    """

    positions: torch.Tensor  # [T] int64 (or [3, T] for multimodal rope)
    query_start: torch.Tensor  # [R + 1] int32
    seq_lens: torch.Tensor  # [R] int32: tokens in the cache once this step has run
    query_lens: list[int]
    max_seq_lens: list[int]
    groups: list[GroupStep]
    rows: torch.Tensor  # [R] int64: rows of the row table
    extras: dict[str, Any] = field(default_factory=dict)  # what extensions add, by name
    last_tokens: torch.Tensor | None = None  # [R] int: of each row. If given, other tokens' final states are not used
    ends: StepContext | None = None  # for a layer whose attention is wanted for those tokens alone: `of_last_tokens`

    @property
    def num_tokens(self) -> int:
        return self.positions.shape[-1]

    @property
    def num_rows(self) -> int:
        return len(self.query_lens)

    def of_last_tokens(self) -> StepContext:
        """The step of R tokens in which each row has its last token alone, when all others are in the cache. Rows of
        padding have none, as ever, so the last of the tokens are of no row. Its groups are not planned."""
        assert self.last_tokens is not None
        ends = (self.query_start.diff() > 0).cumsum(0, dtype=torch.int32)
        return StepContext(
            positions=self.positions[..., self.last_tokens],
            query_start=torch.nn.functional.pad(ends, (1, 0)),
            seq_lens=self.seq_lens,
            query_lens=[min(1, tokens) for tokens in self.query_lens],
            max_seq_lens=self.max_seq_lens,
            groups=[GroupStep(group.block_table, group.slots[self.last_tokens]) for group in self.groups],
            rows=self.rows,
            extras=self.extras,
            last_tokens=(ends - 1).clamp_(min=0),
        )


class GroupBackend(Protocol):
    """What serves the layers of a cache group, of whatever kind: it sees each step once, before them."""

    name: str
    reads_shared_prefix: bool  # makes use of SHARED_PREFIX

    def prepare(self) -> None:
        """It will be used: what takes long to load may begin, on another thread. Called again when a rehearsal begins,
        whereupon what takes long to compile may begin too."""

    @property
    def is_capturable(self) -> bool:
        """Reads of a step only its tensors, which may be padded; else the host's lists, exact ones."""

    def plan(self, step: StepContext, group: int) -> Any:
        """Whatever the kernels need of this step, made once for all layers of a group."""

    def graph_key(self, step: StepContext) -> Hashable:
        """Steps of one size with equal keys may share a captured graph, where the backend is capturable."""


class AttentionBackend(GroupBackend, Protocol):
    """Paged attention over one cache group. One file each; chosen by `attention/select.py`."""

    def why_not(self, query: AttentionQuery) -> str | None:
        """None if this backend can serve `query`, else the reason."""

    def forward(
        self, q_TNH: torch.Tensor, cache: torch.Tensor, step: StepContext, group: int, call: AttentionCall
    ) -> torch.Tensor:
        """Causal attention of the step's tokens over the cache, their own keys and values included (they are written
        before). `cache` is [num_blocks, 2, block_size, K, H], strided by block. Returns [T, N, H]."""
