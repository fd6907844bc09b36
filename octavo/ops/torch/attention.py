"""Paged attention as its definition says: row by row, with the scores written out."""

from __future__ import annotations

import torch

from octavo.ops.torch.cache import from_cache


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
    block_size, num_kv_heads = cache.shape[2], cache.shape[3]
    group_size = q_TNH.shape[1] // num_kv_heads
    out = torch.zeros(q_TNH.shape, dtype=q_TNH.dtype, device=q_TNH.device)
    starts = query_start.tolist()
    for row, length in enumerate(seq_lens_R.tolist()):
        begin, end = starts[row], starts[row + 1]
        if begin == end:
            continue
        first = length - (end - begin)  # position of the row's first query
        low = 0 if window is None else max(0, first - window + 1)
        at = torch.arange(low, length, device=q_TNH.device)
        blocks, offsets = block_table_RB[row].long()[at // block_size], at % block_size
        k_LNH = from_cache(cache[:, 0][blocks, offsets], torch.float32).repeat_interleave(group_size, 1)
        v_LNH = from_cache(cache[:, 1][blocks, offsets], torch.float32).repeat_interleave(group_size, 1)
        scores = torch.einsum("tnh,lnh->ntl", q_TNH[begin:end].float(), k_LNH) * scale
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        query_at = torch.arange(first, length, device=q_TNH.device)[:, None]
        seen = at <= query_at
        if window is not None:
            seen &= at > query_at - window
        scores = scores.masked_fill(~seen, float("-inf"))
        if sinks is not None:
            scores = torch.cat((scores, sinks.float()[:, None, None].expand(-1, end - begin, 1)), -1)
        weights = scores.softmax(-1)[..., : length - low]
        out[begin:end] = torch.einsum("ntl,lnh->tnh", weights, v_LNH).to(out.dtype)
    return out
