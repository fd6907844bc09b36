"""Ops in Triton, for GPUs; without one they run only under Triton's interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import torch
import triton

if not (triton.knobs.runtime.interpret or torch.cuda.is_available()):
    raise ImportError("no GPU is present (TRITON_INTERPRET=1 runs the kernels on a CPU, slowly)")

from octavo.ops.triton.attention import paged_attention

OPS = {function.__name__: function for function in (paged_attention,)}
