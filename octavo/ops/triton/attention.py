"""Paged attention in Triton: rows of few query tokens and rows of many go to kernels of their own, into one output."""

from __future__ import annotations

import torch

from octavo.ops.triton.attention_decode import decode_attention
from octavo.ops.triton.attention_prefill import prefill_attention
from octavo.ops.triton.attention_work import (
    DECODE_TOKENS,
    Bounds,
    Heads,
    Workspace,
    decode_config,
    device_limits,
    list_work,
    prefill_config,
)


def paged_attention(
    q_TNH: torch.Tensor,
    cache: torch.Tensor,
    block_table_RB: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens_R: torch.Tensor,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """As octavo/ops/attention.py says; `sinks` [N] are logits that take part in the softmax of every query, without
    values. Allocates its buffers: backends keep theirs."""
    num_tokens, num_heads, head_dim = q_TNH.shape
    heads = Heads(num_heads, cache.shape[3], head_dim, scale, window, soft_cap, sinks)
    limits = device_limits(q_TNH.device)
    decode, prefill = decode_config(head_dim, q_TNH.dtype, limits), prefill_config(head_dim, q_TNH.dtype, limits)
    rows = len(seq_lens_R)
    bounds = Bounds(rows, DECODE_TOKENS, min(rows, num_tokens // (DECODE_TOKENS + 1)), num_tokens)
    workspace = Workspace()
    work = list_work(query_start, seq_lens_R, bounds, heads, cache.shape[2], decode, prefill, workspace)
    out = torch.empty(q_TNH.shape, dtype=q_TNH.dtype, device=q_TNH.device)
    decode_attention(q_TNH, cache, block_table_RB, work, out, heads, decode, workspace)
    prefill_attention(q_TNH, cache, block_table_RB, work, out, heads, prefill)
    return out
