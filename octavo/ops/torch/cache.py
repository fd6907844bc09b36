"""Cache writes in torch."""

from __future__ import annotations

import torch


def write_kv(k_TKH: torch.Tensor, v_TKH: torch.Tensor, cache: torch.Tensor, slots_T: torch.Tensor) -> None:
    block_size = cache.shape[2]
    blocks = torch.div(slots_T, block_size, rounding_mode="floor")
    offsets = slots_T - blocks * block_size
    cache[:, 0].index_put_((blocks, offsets), k_TKH.to(cache.dtype))
    cache[:, 1].index_put_((blocks, offsets), v_TKH.to(cache.dtype))
