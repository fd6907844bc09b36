"""Attention over the paged cache, by the compiled kernels."""

from __future__ import annotations

import torch

from octavo import _cpu
from octavo.ops.cpu.linear import CACHE_NUMBER, NUMBER
from octavo.ops.cpu.memory import empty
from octavo.ops.torch import attention as specification

NO_SINKS = (0, 0)


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
    if not _takes(q_TNH, cache, block_table_RB, query_start, seq_lens_R, scale, sinks):
        return specification.paged_attention(
            q_TNH, cache, block_table_RB, query_start, seq_lens_R, scale, window, soft_cap, sinks
        )
    num_tokens, num_heads, head_dim = q_TNH.shape
    out = empty((num_tokens, num_heads, head_dim), q_TNH.dtype)
    q_token, q_head, _ = q_TNH.stride()
    _cpu.attention(
        (q_TNH.data_ptr(), NUMBER[q_TNH.dtype]),
        (num_tokens, num_heads, head_dim, q_token, q_head),
        (cache.data_ptr(), CACHE_NUMBER[cache.dtype]),
        (*cache.shape[2:4], *cache.stride()[:4]),
        block_table_RB.data_ptr(),
        (*block_table_RB.shape, block_table_RB.stride(0)),
        query_start.data_ptr(),
        seq_lens_R.data_ptr(),
        scale,
        window or 0,
        soft_cap or 0.0,
        NO_SINKS if sinks is None else (sinks.data_ptr(), NUMBER[sinks.dtype]),
        out.data_ptr(),
    )
    return out


def _takes(
    q_TNH: torch.Tensor,
    cache: torch.Tensor,
    block_table_RB: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens_R: torch.Tensor,
    scale: float,
    sinks: torch.Tensor | None,
) -> bool:
    int32 = torch.int32
    return (
        q_TNH.dtype in NUMBER
        and cache.dtype in CACHE_NUMBER
        and q_TNH.stride(2) == 1
        and cache.stride(4) == 1
        and block_table_RB.dtype == query_start.dtype == seq_lens_R.dtype == int32
        and block_table_RB.stride(1) == 1
        and query_start.is_contiguous()
        and seq_lens_R.is_contiguous()
        and scale > 0
        and (sinks is None or (sinks.dtype in NUMBER and sinks.is_contiguous()))
    )
