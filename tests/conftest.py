"""What every test may rely on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from octavo.platforms import cuda

# Tiny models gain nothing from a second thread, and waiting for it costs much on a busy machine. Before torch starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test leaves packed weights in the user's cache; those that are about them say where.
os.environ["OCTAVO_PACKED_WEIGHTS_GIB"] = "0"

# Without a GPU, Triton's kernels run in its interpreter. That has to be said before triton is imported by anybody.
if cuda.platform() is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _log_as_found() -> Iterator[None]:
    """A test that sets the program's logging up leaves the others' records visible."""
    logger = logging.getLogger("octavo")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate
