"""Attention by octavo's Triton kernels: rows of few query tokens to one, rows of many to another, into one output.

Everything about a step's lengths is read from device memory, so a captured graph serves all steps within its bounds:

    graph_key   (1, 0)   every row has one query token            (a decode step)
                (4, 8)   rows of many tokens lie within 8 rows    (a mixed step; others up to 32, 128, ...)

Rows may share leading blocks: `step.extras[SHARED_PREFIX]`, an `ops.attention.PrefixGroups`. Its keys and values are
then read once for all rows of a group, in layers without a window. Captured graphs take the tensors of the step they
were captured with, so these have to stay where they are too.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

from octavo.attention.backend import SHARED_PREFIX, AttentionCall, AttentionQuery, StepContext
from octavo.ops.attention import PrefixGroups
from octavo.ops.triton.attention_decode import decode_attention
from octavo.ops.triton.attention_prefill import prefill_attention
from octavo.ops.triton.attention_prefix import PrefixWork, list_prefixes, prefix_attention
from octavo.ops.triton.attention_work import (
    DECODE_TOKENS,
    Bounds,
    DecodeConfig,
    Heads,
    PrefillConfig,
    Work,
    Workspace,
    decode_config,
    device_limits,
    list_work,
    prefill_config,
)

FLOATS = ("float32", "bfloat16", "float16")
MAX_HEAD_DIM = 256

Configs = tuple[DecodeConfig, PrefillConfig]


@dataclass(slots=True)
class PagedPlan:
    """What the layers of a group share in a step; lists of work are made when the first layer asks for them."""

    bounds: Bounds
    groups: PrefixGroups | None
    work: dict[Hashable, tuple[Work, PrefixWork | None]] = field(default_factory=dict)


def why_not_triton(query: AttentionQuery) -> str | None:
    """What no Triton kernel here can serve."""
    for what, dtype in (("dtype", query.dtype), ("cache dtype", query.cache_dtype)):
        if dtype not in FLOATS:
            return f"{what} {dtype} is not one of {', '.join(FLOATS)}"
    if query.head_dim > MAX_HEAD_DIM:
        return f"head_dim {query.head_dim} is over {MAX_HEAD_DIM}"
    if query.num_heads % query.num_kv_heads:
        return f"{query.num_heads} heads are no multiple of {query.num_kv_heads}"
    if query.dtype == "bfloat16" and query.capability is not None and query.capability < (8, 0):
        return f"compute capability {_dotted(query.capability)} is under 8.0, which bfloat16 needs"
    return None


class TritonPaged:
    name = "triton_paged"
    is_capturable = True
    reads_shared_prefix = True
    decode_tokens = DECODE_TOKENS  # rows of more query tokens are prefill rows; drafts may ask for more

    def __init__(self) -> None:
        self.workspace = Workspace()
        self._configs: dict[Hashable, Configs] = {}
        self._bounds: tuple[list[int], Bounds] | None = None

    def why_not(self, query: AttentionQuery) -> str | None:
        return why_not_triton(query)

    def prepare(self) -> None:
        """Nothing to load."""

    def graph_key(self, step: StepContext) -> Hashable:
        bounds = self.bounds(step)
        groups = step.extras.get(SHARED_PREFIX)
        return bounds.decode_tokens, bounds.prefill_rows, None if groups is None else len(groups.blocks)

    def plan(self, step: StepContext, group: int) -> PagedPlan:
        return PagedPlan(self.bounds(step), step.extras.get(SHARED_PREFIX))

    def bounds(self, step: StepContext) -> Bounds:
        """Of all steps with this one's sizes and graph key."""
        lens = step.query_lens
        if self._bounds is None or self._bounds[0] is not lens or self._bounds[1].prefill_tokens != step.num_tokens:
            if max(lens, default=0) <= 1:
                bounds = Bounds(len(lens), 1, 0, step.num_tokens)
            else:
                long = [row for row, tokens in enumerate(lens) if tokens > self.decode_tokens]
                span = long[-1] - long[0] + 1 if long else 0  # short rows among the long ones count: see flash_triton
                bounds = Bounds(len(lens), self.decode_tokens, _rounded(span, len(lens)), step.num_tokens)
            self._bounds = lens, bounds
        return self._bounds[1]

    def forward(
        self, q_TNH: torch.Tensor, cache: torch.Tensor, step: StepContext, group: int, call: AttentionCall
    ) -> torch.Tensor:
        out = torch.empty(q_TNH.shape, dtype=q_TNH.dtype, device=q_TNH.device)
        self.decode(q_TNH, cache, step, group, call, out)
        heads = _heads(call)
        _, prefill = self._config(step.groups[group].plan, call.head_dim, q_TNH.dtype, q_TNH.device)
        work, _ = self._work(step, group, heads, cache.shape[2], q_TNH)
        prefill_attention(q_TNH, cache, step.groups[group].block_table, work, out, heads, prefill)
        return out

    def decode(
        self,
        q_TNH: torch.Tensor,
        cache: torch.Tensor,
        step: StepContext,
        group: int,
        call: AttentionCall,
        out_TNH: torch.Tensor,
    ) -> None:
        """Only the rows of few query tokens."""
        heads, table = _heads(call), step.groups[group].block_table
        decode, prefill = self._config(step.groups[group].plan, call.head_dim, q_TNH.dtype, q_TNH.device)
        work, prefixes = self._work(step, group, heads, cache.shape[2], q_TNH)
        parts = None
        if prefixes is not None:
            parts = prefix_attention(q_TNH, cache, table, step.query_start, prefixes, heads, prefill, self.workspace)
        decode_attention(q_TNH, cache, table, work, out_TNH, heads, decode, self.workspace, parts)

    def _work(
        self, step: StepContext, group: int, heads: Heads, page: int, q_TNH: torch.Tensor
    ) -> tuple[Work, PrefixWork | None]:
        plan: PagedPlan = step.groups[group].plan
        key = (heads.window, heads.num_kv_heads, heads.group, heads.head_dim, q_TNH.dtype)
        if key not in plan.work:
            decode, prefill = self._config(plan, heads.head_dim, q_TNH.dtype, q_TNH.device)
            prefixes = None
            if plan.groups is not None and heads.window is None:
                prefixes = list_prefixes(plan.groups, plan.bounds, heads, page, decode, prefill, self.workspace)
            work = list_work(
                step.query_start,
                step.seq_lens,
                plan.bounds,
                heads,
                page,
                decode,
                prefill,
                self.workspace,
                prefixes.tokens if prefixes else None,
            )
            plan.work[key] = work, prefixes
        return plan.work[key]

    def _config(self, plan: PagedPlan, head_dim: int, dtype: torch.dtype, device: torch.device) -> Configs:
        rows = None if plan.groups is not None else plan.bounds.rows  # what shares a prefix needs no even split
        key = (head_dim, dtype, rows)
        if key not in self._configs:
            limits = device_limits(device)
            self._configs[key] = decode_config(head_dim, dtype, limits, rows), prefill_config(head_dim, dtype, limits)
        return self._configs[key]


def _heads(call: AttentionCall) -> Heads:
    return Heads(call.num_heads, call.num_kv_heads, call.head_dim, call.scale, call.window, call.soft_cap, call.sinks)


def _rounded(rows: int, limit: int) -> int:
    """A number of prefill rows that many steps share."""
    if rows == 0:
        return 0
    return min(limit, next((size for size in (8, 32, 128) if rows <= size), limit))


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
