"""Rotary embedding of correctly rounded products, sums and differences alone."""

from __future__ import annotations

import torch

from octavo.ops.torch.cache import write_kv
from octavo.ops.torch.norm import rms_norm


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
    if q_norm is not None:
        q_TNH = rms_norm(q_TNH, q_norm, eps, weight_offset)
    if k_norm is not None:
        k_TKH = rms_norm(k_TKH, k_norm, eps, weight_offset)
    cos, sin = cos_sin.index_select(0, positions_T).unsqueeze(1).chunk(2, -1)  # [T, 1, D / 2] each
    write_kv(_rotate(k_TKH, cos, sin), v_TKH, cache, slots_T)
    return _rotate(q_TNH, cos, sin)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """As in `ops/torch`, but not with its sum of products in one op, which may round once or twice."""
    half = cos.shape[-1]
    wide = x.float()
    first, second = wide[..., :half], wide[..., half : 2 * half]
    parts = [(first * cos).sub_(second * sin), (second * cos).add_(first * sin)]
    if 2 * half < x.shape[-1]:
        parts.append(wide[..., 2 * half :])
    return torch.cat(parts, -1).to(x.dtype)
