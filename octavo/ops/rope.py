"""Rotary position embedding (Su et al. 2021) in the half-split ("neox") order, with what surrounds it in a layer."""

from __future__ import annotations

import torch

from octavo.ops.dispatch import bound


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
    """Norms each head of q and k (where a weight [H] is given), rotates both, writes k and v to the cache at `slots`.

    q, k, v: rows may be strided (they are usually views of one fused projection), heads are dense. positions [T] int64.
    cos_sin [P, D] float32: cosines of D/2 frequencies, then sines; the first D <= H values of a head are rotated.
    cache and slots as in `write_kv`; k is rounded to its dtype before it is stored.
    Returns the rotated q, contiguous [T, N, H].
    """
    return bound.rope_and_write(
        q_TNH, k_TKH, v_TKH, positions_T, cos_sin, cache, slots_T, q_norm, k_norm, eps, weight_offset
    )
