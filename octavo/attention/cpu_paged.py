"""Attention by octavo's compiled kernels, for processors: rows of any length in one call, from the cache as it is.

    row 0   1 token   of 350   streamed: each key and value is read once for all query heads that share it
    row 1   1 token   of 9000  the same, in parts that threads share
    row 2   200 tokens of 512  tiles of 16 queries
    row 3   0 tokens           padding

All that differs between steps is read from the step's tensors inside the call, so one that was recorded serves every
step of its size.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch

from octavo.attention.backend import AttentionCall, AttentionQuery, StepContext
from octavo.cache.spec import KV_DTYPES
from octavo.ops import dispatch
from octavo.ops.attention import paged_attention

FLOATS = ("float32", "bfloat16", "float16")


class CpuPaged:
    name = "cpu_paged"
    is_capturable = True
    reads_shared_prefix = False

    def why_not(self, query: AttentionQuery) -> str | None:
        if "cpu" not in dispatch.present()["paged_attention"]:
            return "octavo's CPU kernels are not compiled"
        for what, dtype, known in (("dtype", query.dtype, FLOATS), ("cache dtype", query.cache_dtype, KV_DTYPES)):
            if dtype not in known:
                return f"{what} {dtype} is not one of {', '.join(known)}"
        if query.num_heads % query.num_kv_heads:
            return f"{query.num_heads} heads are no multiple of {query.num_kv_heads}"
        return None

    def prepare(self) -> None:
        """Nothing to load."""

    def plan(self, step: StepContext, group: int) -> None:
        """The kernels make their own, of lengths that they read."""

    def graph_key(self, step: StepContext) -> Hashable:
        return None

    def forward(
        self, q_TNH: torch.Tensor, cache: torch.Tensor, step: StepContext, group: int, call: AttentionCall
    ) -> torch.Tensor:
        return paged_attention(
            q_TNH,
            cache,
            step.groups[group].block_table,
            step.query_start,
            step.seq_lens,
            call.scale,
            call.window,
            call.soft_cap,
            call.sinks,
        )
