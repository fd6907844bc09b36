"""Without a GPU, Triton's kernels run in its interpreter. That has to be said before triton is imported."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.ops import interpreter

interpreter.prepare()


@pytest.fixture(autouse=True)
def _arithmetic_as_on_a_device() -> Iterator[None]:
    """The interpreter computes in numpy, which warns of infinities and NaN that kernels mean to have."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        yield
