"""Kernels that start while the one before them ends: programmatic dependent launch, of Hopper and later devices.

Between two small kernels a device idles for about a microsecond, as long as the smallest of them run. A chained kernel
is launched as soon as all programs of the one before have begun, and waits in `follow`, before its first access to
memory, for that one to complete, which itself completes only after the one before it. So every kernel sees all that was
written before it, and nothing may come before `follow` but reads of what never changes.
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
def announce(CHAIN: tl.constexpr):
    """The kernel after this one may start. Only before `follow`."""
    if CHAIN:
        gdc_launch_dependents()


@triton.jit
def follow(CHAIN: tl.constexpr, ANNOUNCED: tl.constexpr = False):
    """At the top of a kernel."""
    if CHAIN:
        if not ANNOUNCED:
            gdc_launch_dependents()
        gdc_wait()


@cache
def launch_options() -> dict[str, Any]:
    """What a launch says beside its arguments: CHAIN for the kernel, the rest for Triton."""
    if triton.knobs.runtime.interpret or torch.version.hip is not None or not torch.cuda.is_available():
        return {"CHAIN": False}
    is_able = torch.cuda.get_device_capability() >= _FIRST_CAPABILITY
    return {"CHAIN": True, "launch_pdl": True} if is_able else {"CHAIN": False}
