"""Triton's kernels run in its interpreter where there is no GPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest

from tests.ops import interpreter

interpreter.prepare()


@pytest.fixture(autouse=True)
def _arithmetic_as_on_a_device() -> Iterator[None]:
    """The interpreter computes in numpy, which warns of infinities and NaN that kernels mean to have."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        yield
