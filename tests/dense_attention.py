"""Random paged layouts and what attention over them must give, by the dense definition in float64."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch


@dataclass
class Layout:
    """One step's attention. Every slot that no query may see holds NaN."""

    q: torch.Tensor  # [T, N, H]
    cache: torch.Tensor  # [B, 2, block_size, K, H], strided by block; of int8 H + 4
    block_table: torch.Tensor  # [R, B] int32, 0 where there is no block or it left the window
    query_start: torch.Tensor
    seq_lens: torch.Tensor
    query_lens: list[int]
    keys: list[torch.Tensor]  # of each row, [L, K, H]: what the cache stands for
    values: list[torch.Tensor]


def as_int8(heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Heads [..., H] in steps of a 127th of the largest magnitude: [..., H + 4] int8 with that step as a float32 at the
    end, and the values [..., H] that stand there."""
    step = heads.abs().amax(-1, keepdim=True) / 127
    steps = (heads / step).round()
    scale = step.flatten().view(torch.int8).view(*heads.shape[:-1], 4)
    return torch.cat((steps.to(torch.int8), scale), -1), steps * step


def random_layout(
    rows: list[tuple[int, int]],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    block_size: int = 16,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Layout:
    """`rows` are (query tokens, tokens in all)."""
    generator = torch.Generator().manual_seed(seed)
    widths = [-(-length // block_size) for _, length in rows]
    num_blocks = 1 + sum(widths)
    free = list(range(1, num_blocks))
    random.Random(seed).shuffle(free)
    between = 3 * num_kv_heads * head_dim  # another layer's part of the page
    is_int8 = cache_dtype == torch.int8
    width = head_dim + 4 * is_int8
    page = 2 * block_size * num_kv_heads * width
    buffer = torch.full((num_blocks, page + between), -1 if is_int8 else math.nan, dtype=cache_dtype or dtype)
    cache = buffer[:, :page].unflatten(1, (2, block_size, num_kv_heads, width))  # four bytes of -1 are NaN
    block_table = torch.zeros(len(rows), max(widths) + 1, dtype=torch.int32)
    keys, values = [], []
    for row, (num_queries, length) in enumerate(rows):
        k, v = (torch.randn(length, num_kv_heads, head_dim, generator=generator) for _ in "kv")
        stored_k, k = as_int8(k) if is_int8 else (k.to(cache.dtype),) * 2
        stored_v, v = as_int8(v) if is_int8 else (v.to(cache.dtype),) * 2
        first_seen = 0 if window is None else max(0, length - num_queries - window + 1)
        for index in range(first_seen // block_size, widths[row]):
            block_table[row, index] = block = free.pop()
            for position in range(max(first_seen, index * block_size), min(length, (index + 1) * block_size)):
                cache[block, 0, position % block_size] = stored_k[position]
                cache[block, 1, position % block_size] = stored_v[position]
        keys.append(k)
        values.append(v)
    query_lens = [num_queries for num_queries, _ in rows]
    q = torch.randn(sum(query_lens), num_heads, head_dim, generator=generator).to(dtype)
    query_start = torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32)
    seq_lens = torch.tensor([length for _, length in rows], dtype=torch.int32)
    return Layout(q, cache, block_table, query_start, seq_lens, query_lens, keys, values)


def dense_attention(layout: Layout, scale: float, window: int | None, soft_cap: float | None) -> torch.Tensor:
    """[T, N, H] float64, one query head at a time."""
    out = torch.zeros(layout.q.shape, dtype=torch.float64)
    num_heads, num_kv_heads = layout.q.shape[1], layout.cache.shape[3]
    at = 0
    for num_queries, keys, values in zip(layout.query_lens, layout.keys, layout.values, strict=True):
        for query in range(num_queries):
            position = len(keys) - num_queries + query
            low = 0 if window is None else max(0, position - window + 1)
            for head in range(num_heads):
                source = head * num_kv_heads // num_heads
                k, v = keys[low : position + 1, source].double(), values[low : position + 1, source].double()
                scores = k @ layout.q[at + query, head].double() * scale
                if soft_cap is not None:
                    scores = soft_cap * torch.tanh(scores / soft_cap)
                out[at + query, head] = torch.softmax(scores, 0) @ v
        at += num_queries
    return out
