"""Without a GPU, Triton's kernels run in its interpreter. That has to be said before triton is imported."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.ops import interpreter

interpreter.prepare()
