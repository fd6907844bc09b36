"""Rotary embedding and cache writes by the compiled kernels: each token's heads in one pass."""

from __future__ import annotations

import torch

from octavo import _cpu
from octavo.ops.cpu.linear import CACHE_NUMBER, NUMBER
from octavo.ops.cpu.memory import empty
from octavo.ops.torch import cache as cache_specification
from octavo.ops.torch import rope as rope_specification


def write_kv(k_TKH: torch.Tensor, v_TKH: torch.Tensor, cache: torch.Tensor, slots_T: torch.Tensor) -> None:
    if not _is_known(k_TKH, v_TKH, cache, slots_T):
        _write_by_torch(k_TKH, v_TKH, cache, slots_T)
        return
    num_tokens, num_heads, size = k_TKH.shape
    _cpu.write_kv(
        _heads(k_TKH),
        _heads(v_TKH),
        NUMBER[k_TKH.dtype],
        num_tokens,
        num_heads,
        size,
        _pages(cache),
        slots_T.data_ptr(),
    )


def rope_and_write(
    q_TNH: torch.Tensor,
    k_TKH: torch.Tensor,
    v_TKH: torch.Tensor,
    positions_T: torch.Tensor,
    cos_sin: torch.Tensor,
    cache: torch.Tensor,
    slots_T: torch.Tensor,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 0.0,
    weight_offset: float = 0.0,
) -> torch.Tensor:
    dtype = q_TNH.dtype
    if not (
        _is_known(k_TKH, v_TKH, cache, slots_T)
        and k_TKH.dtype == dtype
        and q_TNH.stride(2) == 1
        and positions_T.is_contiguous()
        and cos_sin.dtype == torch.float32
        and cos_sin.stride(1) == 1
        and (q_norm is None or (q_norm.dtype == dtype and q_norm.is_contiguous()))
        and (k_norm is None or (k_norm.dtype == dtype and k_norm.is_contiguous()))
    ):
        pages = k_TKH.new_empty(len(slots_T), 2, 1, *k_TKH.shape[1:])  # a token each
        places = torch.arange(len(slots_T))
        out = rope_specification.rope_and_write(
            q_TNH, k_TKH, v_TKH, positions_T, cos_sin, pages, places, q_norm, k_norm, eps, weight_offset
        )
        _write_by_torch(pages[:, 0, 0], pages[:, 1, 0], cache, slots_T)
        return out
    num_tokens, num_kv_heads, size = k_TKH.shape
    num_heads = q_TNH.shape[1]
    num_positions, rotated = cos_sin.shape
    out = empty((num_tokens, num_heads, size), dtype)
    _cpu.rope_and_write(
        _heads(q_TNH),
        num_heads,
        _heads(k_TKH),
        _heads(v_TKH),
        NUMBER[dtype],
        num_tokens,
        num_kv_heads,
        size,
        _pages(cache),
        slots_T.data_ptr(),
        positions_T.data_ptr(),
        cos_sin.data_ptr(),
        num_positions,
        cos_sin.stride(0),
        rotated,
        0 if q_norm is None else q_norm.data_ptr(),
        0 if k_norm is None else k_norm.data_ptr(),
        eps,
        weight_offset,
        out.data_ptr(),
    )
    return out


def _is_known(k_TKH: torch.Tensor, v_TKH: torch.Tensor, cache: torch.Tensor, slots_T: torch.Tensor) -> bool:
    return (
        k_TKH.dtype in NUMBER
        and v_TKH.dtype == k_TKH.dtype
        and cache.dtype in CACHE_NUMBER
        and k_TKH.stride(2) == 1
        and v_TKH.stride(2) == 1
        and cache.stride(4) == 1
        and slots_T.is_contiguous()
    )


def _write_by_torch(k_TKH: torch.Tensor, v_TKH: torch.Tensor, cache: torch.Tensor, slots_T: torch.Tensor) -> None:
    is_real_T = slots_T >= 0
    cache_specification.write_kv(k_TKH[is_real_T], v_TKH[is_real_T], cache, slots_T[is_real_T])


def _heads(x_TNH: torch.Tensor) -> tuple[int, int, int]:
    token_stride, head_stride, _ = x_TNH.stride()
    return x_TNH.data_ptr(), token_stride, head_stride


def _pages(cache: torch.Tensor) -> tuple[int, int, int, int, int, int, int, int]:
    blocks, part, token, head = cache.stride()[:4]
    return cache.data_ptr(), CACHE_NUMBER[cache.dtype], cache.shape[0], cache.shape[2], blocks, part, token, head
