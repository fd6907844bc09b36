"""Cache writes and reads in torch."""

from __future__ import annotations

import torch

from octavo.cache.spec import SCALE_BYTES

LEAST_QUANTIZED = 1e-30  # magnitude: the inverse of less is infinite


def write_kv(k_TKH: torch.Tensor, v_TKH: torch.Tensor, cache: torch.Tensor, slots_T: torch.Tensor) -> None:
    block_size = cache.shape[2]
    blocks = torch.div(slots_T, block_size, rounding_mode="floor")
    offsets = slots_T - blocks * block_size
    cache[:, 0].index_put_((blocks, offsets), to_cache(k_TKH, cache.dtype))
    cache[:, 1].index_put_((blocks, offsets), to_cache(v_TKH, cache.dtype))


def to_cache(heads: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Heads [..., H] as a cache of this dtype keeps them.

    Of int8, [..., H + 4]: each head in steps of a 127th of its largest magnitude, to nearest, and that step as the
    float32 of its last four bytes. A head that is not finite has a step that is not, and ones; one without any
    magnitude of LEAST_QUANTIZED has zeros.
    """
    if dtype != torch.int8:
        return heads.to(dtype)
    wide = heads.float()
    top = wide.abs().amax(-1, keepdim=True)
    inverse = torch.where(top < LEAST_QUANTIZED, 0.0, torch.full_like(top, 127.0) / top)  # 127.0 / top rounds twice
    steps = torch.where(top.isfinite(), (wide * inverse).round(), 1.0).to(torch.int8)
    scale = (top / 127).flatten().view(torch.int8).view(*heads.shape[:-1], SCALE_BYTES)
    return torch.cat((steps, scale), -1)


def from_cache(part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Heads [..., H] in this dtype, of what `to_cache` made."""
    if part.dtype != torch.int8:
        return part.to(dtype)
    scale = part[..., -SCALE_BYTES:].flatten().view(torch.float32).view(*part.shape[:-1], 1)
    return (part[..., :-SCALE_BYTES].float() * scale).to(dtype)
