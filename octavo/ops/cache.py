"""Writing to the paged cache."""

from __future__ import annotations

import torch

from octavo.ops.dispatch import bound


def write_kv(k_TKH: torch.Tensor, v_TKH: torch.Tensor, cache: torch.Tensor, slots_T: torch.Tensor) -> None:
    """Writes keys and values at `slots` [T] int64 = block * block_size + offset.

    cache [B, 2, block_size, K, H], strided by block, of any floating dtype; or [B, 2, block_size, K, H + 4] int8, as
    `torch.cache.to_cache` says, where the platform has such caches. Slots are distinct, but for those of the null block
    (block 0), which take the writes of padding. A slot below 0 is padding as well: nothing is written for it (but the
    torch implementation, which no captured graph pads, does not take such slots).
    """
    bound.write_kv(k_TKH, v_TKH, cache, slots_T)
