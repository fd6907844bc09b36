"""How many threads compute, and on which cores."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from octavo.ops import dispatch


def describe(count: int, cpus: Sequence[int] = ()) -> str:
    """What `use_threads` of the same does, for people."""
    if not dispatch.load("cpu"):
        return f"{count} of torch's"
    pinned = f", pinned to {', '.join(map(str, cpus[1:count]))}" if len(cpus) >= count > 1 else ""
    own = f"one pool of {count} for octavo's kernels, the caller's thread among them{pinned}"
    return own if count == 1 else f"{own}; torch's, for its operators, sleep when idle"


def use_threads(count: int, cpus: Sequence[int] = ()) -> None:
    """torch's operators and octavo's kernels compute with `count` threads from here on, the caller's among them. The
    kernels' own are pinned to `cpus`, the first of which is left to the caller, where there are as many."""
    torch.set_num_threads(count)
    if dispatch.load("cpu"):
        from octavo import _cpu

        _cpu.start_threads(list(cpus[:count]) if len(cpus) >= count else [-1] * count)
