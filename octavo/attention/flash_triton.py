"""FlashAttention-4 for rows of many query tokens, octavo's Triton kernel for rows of few, into one output.

FlashAttention-4 has no split of the keys on Hopper, so rows that decode would leave most of the GPU idle. It is given
the rows from the first to the last long one, moved together on the device; rows of few tokens among them are computed
twice, to the same result. Steps put rows of one token first, so these are outside:

    rows           1 token, 1 token, 1 token, 70 tokens, 3 tokens, 50 tokens, padding
    given                                     3:73       73:76     76:126     126:126 ...   (cumulative lengths)

For more than MOST_ROWS rows it has other kernels, each compiled for seconds. In such steps rows are short, and octavo's
kernel for rows of many tokens takes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.attention import flash_import
from octavo.attention.backend import AttentionCall, AttentionQuery, StepContext
from octavo.attention.triton_paged import PagedPlan, TritonPaged
from octavo.ops import ahead
from octavo.ops.triton.attention_rows import LongRows, gather_long_rows

if reason := flash_import.why_absent():
    raise ImportError(reason)

DTYPES = ("bfloat16", "float16")
CAPABILITIES = (9, 10)  # the major number
MAX_HEAD_DIM = 256
MOST_ROWS = 256


@dataclass(slots=True)
class FlashPlan(PagedPlan):
    long_rows: LongRows | None = None


class FlashTriton(TritonPaged):
    name = "flash_triton"

    def __init__(self) -> None:
        super().__init__()
        self._flash = flash_import.FlashImport()

    def prepare(self) -> None:
        self._flash.start()

    def why_not(self, query: AttentionQuery) -> str | None:
        if query.dtype not in DTYPES:
            return f"dtype {query.dtype} is not one of {', '.join(DTYPES)}"
        if query.cache_dtype != query.dtype:
            return f"cache dtype {query.cache_dtype} is not the model's {query.dtype}"
        if query.capability is None or query.capability[0] not in CAPABILITIES:
            shown = "unknown" if query.capability is None else ".".join(map(str, query.capability))
            return f"compute capability {shown} is not 9.x or 10.x"
        if query.head_dim > MAX_HEAD_DIM or query.head_dim % 8:
            return f"head_dim {query.head_dim} is not a multiple of 8 up to {MAX_HEAD_DIM}"
        if query.capability[0] == 10 and 128 < query.head_dim < 256:
            return f"head_dim {query.head_dim} is over 128 and not 256"
        if query.sinks:
            return "no attention sinks"
        return super().why_not(query)

    def plan(self, step: StepContext, group: int) -> FlashPlan:
        plan = super().plan(step, group)
        long_rows = None
        if 0 < plan.bounds.prefill_rows <= MOST_ROWS:
            long_rows = gather_long_rows(
                step.query_start, step.seq_lens, step.groups[group].block_table, plan.bounds, self.workspace, group
            )
        return FlashPlan(plan.bounds, plan.groups, plan.work, long_rows)

    def forward(
        self, q_TNH: torch.Tensor, cache: torch.Tensor, step: StepContext, group: int, call: AttentionCall
    ) -> torch.Tensor:
        plan: FlashPlan = step.groups[group].plan
        if plan.long_rows is None:
            return super().forward(q_TNH, cache, step, group, call)
        key = (q_TNH.dtype, call.head_dim, call.num_heads // call.num_kv_heads, call.window is None, call.soft_cap)
        if ahead.is_rehearsing():
            ahead.compile_beside(("flash", key), self._attend, q_TNH, cache, plan.long_rows, call)
            out = torch.empty(q_TNH.shape, dtype=q_TNH.dtype, device=q_TNH.device)
        else:
            ahead.wait_for(("flash", key))
            found = self._attend(q_TNH, cache, plan.long_rows, call)
            if found is None:
                return super().forward(q_TNH, cache, step, group, call)
            out = found
        self.decode(q_TNH, cache, step, group, call, out)
        return out

    def _attend(
        self, q_TNH: torch.Tensor, cache: torch.Tensor, long_rows: LongRows, call: AttentionCall
    ) -> torch.Tensor | None:
        """None where FlashAttention-4 cannot be imported after all."""
        flash_attn_varlen_func = self._flash.function()
        if flash_attn_varlen_func is None:
            return None
        out, *_ = flash_attn_varlen_func(
            q_TNH,
            cache[:, 0],
            cache[:, 1],
            cu_seqlens_q=long_rows.query_start,
            seqused_k=long_rows.seq_lens,
            page_table=long_rows.block_table,
            softmax_scale=call.scale,
            causal=True,
            window_size=(None, None) if call.window is None else (call.window - 1, 0),
            softcap=call.soft_cap or 0.0,
        )
        return out
