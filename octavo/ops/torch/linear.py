"""Matrix products, by the library that torch was built with."""

from __future__ import annotations

from torch.nn.functional import linear

__all__ = ["linear"]
