"""Kernels that start while the one before them ends: programmatic dependent launch, of Hopper and later devices.

Between two small kernels a device idles for about a microsecond, as long as the smallest of them run. A chained kernel
is launched early, and waits in `follow`, before its first access to memory, for the kernel before it to complete. So
every kernel sees all that was written before it, and nothing may come before `follow` but reads of what never changes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_FIRST_CAPABILITY = (9, 0)


@triton.jit
def follow(CHAIN: tl.constexpr):
    """At the top of a kernel."""
    if CHAIN:
        gdc_wait()
        gdc_launch_dependents()


@cache
def launch_options() -> dict[str, Any]:
    """What a launch says beside its arguments: CHAIN for the kernel, the rest for Triton."""
    if triton.knobs.runtime.interpret or torch.version.hip is not None or not torch.cuda.is_available():
        return {"CHAIN": False}
    is_able = torch.cuda.get_device_capability() >= _FIRST_CAPABILITY
    return {"CHAIN": True, "launch_pdl": True} if is_able else {"CHAIN": False}
