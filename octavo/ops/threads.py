"""How many threads compute, and on which cores."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from octavo.ops import dispatch


def use_threads(count: int, cpus: Sequence[int] = ()) -> None:
    """torch's operators and octavo's kernels compute with `count` threads from here on, the caller's among them. The
    kernels' own are pinned to `cpus`, the first of which is left to the caller, where there are as many."""
    torch.set_num_threads(count)
    if dispatch.load("cpu"):
        from octavo import _cpu

        _cpu.start_threads(list(cpus[:count]) if len(cpus) >= count else [-1] * count)
