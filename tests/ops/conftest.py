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

from octavo.ops import dispatch
from tests.ops import interpreter

interpreter.prepare()
if dispatch.load("cpu"):
    from octavo import _cpu
else:
    _cpu = None


@pytest.fixture(autouse=True)
def _arithmetic_as_on_a_device() -> Iterator[None]:
    """The interpreter computes in numpy, which warns of infinities and NaN that kernels mean to have."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        yield


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    """Bounds on rounding are statistical: what passes passes again, whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(params=_cpu.isas() if _cpu is not None else [])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine that octavo's compiled kernels know, forced."""
    assert _cpu is not None
    _cpu.set_isa(request.param)
    yield request.param
    _cpu.set_isa("")
