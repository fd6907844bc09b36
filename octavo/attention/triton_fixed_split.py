"""Attention for batch_invariant by octavo's Triton kernels: one kernel for rows of one query token and of many, and no
split of the keys that depends on the step. Everything is read from device memory, so steps can be captured."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

from octavo.attention.backend import AttentionCall, AttentionQuery, StepContext
from octavo.attention.triton_paged import why_not_triton
from octavo.ops.triton.attention_fixed import fixed_attention, fixed_config
from octavo.ops.triton.attention_work import (
    Bounds,
    DecodeConfig,
    Heads,
    PrefillConfig,
    Work,
    Workspace,
    device_limits,
    list_work,
)


@dataclass(slots=True)
class FixedPlan:
    """What the layers of a group share in a step; lists of work are made when the first layer asks for them."""

    bounds: Bounds
    work: dict[Hashable, Work] = field(default_factory=dict)


class TritonFixedSplit:
    name = "triton_fixed_split"
    is_capturable = True
    reads_shared_prefix = False

    def __init__(self) -> None:
        self.workspace = Workspace()

    def why_not(self, query: AttentionQuery) -> str | None:
        return why_not_triton(query)

    def graph_key(self, step: StepContext) -> Hashable:
        return None

    def prepare(self) -> None:
        """Nothing to load."""

    def plan(self, step: StepContext, group: int) -> FixedPlan:
        return FixedPlan(Bounds(step.num_rows, 0, step.num_rows, step.num_tokens))

    def forward(
        self, q_TNH: torch.Tensor, cache: torch.Tensor, step: StepContext, group: int, call: AttentionCall
    ) -> torch.Tensor:
        plan: FixedPlan = step.groups[group].plan
        heads = Heads(
            call.num_heads, call.num_kv_heads, call.head_dim, call.scale, call.window, call.soft_cap, call.sinks
        )
        config = fixed_config(call.head_dim, q_TNH.dtype, device_limits(q_TNH.device))
        key = (heads.window, heads.num_kv_heads, heads.group, config)
        if key not in plan.work:
            plan.work[key] = list_work(
                step.query_start,
                step.seq_lens,
                plan.bounds,
                heads,
                cache.shape[2],
                DecodeConfig(),
                PrefillConfig(config.block_m, config.block_n),
                self.workspace,
            )
        out = torch.empty(q_TNH.shape, dtype=q_TNH.dtype, device=q_TNH.device)
        fixed_attention(q_TNH, cache, step.groups[group].block_table, plan.work[key], out, heads, config)
        return out
