"""What every test may rely on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Tiny models gain nothing from a second thread, and waiting for it costs much on a busy machine. Before torch starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Triton reads it when it is imported, as by transformers. Without a GPU, kernels run in its interpreter (tests/ops).
if not any(Path("/dev", name).exists() for name in ("nvidiactl", "kfd")):
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _log_as_found() -> Iterator[None]:
    """A test that sets the program's logging up leaves the others' records visible."""
    logger = logging.getLogger("octavo")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate
