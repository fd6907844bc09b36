"""How the tokens of a step share out among the states of recurrent layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(slots=True)
class StateRows:
    """Which tokens and which states belong together: made once a step, for all layers whose states are in the same
    blocks.

    Row r's tokens are query_start[r] : query_start[r + 1], one at least, and its state is states[blocks[r]]; no two
    rows share a block. A fresh row starts from zeros, whatever its block holds (NaN included).
    """

    blocks: torch.Tensor  # [R] int64
    fresh: torch.Tensor | None  # [R] bool; None where no row is fresh
    query_start: torch.Tensor  # [R + 1] int32
    query_lens: list[int]
    derived: dict[str, Any] = field(default_factory=dict)  # what the first layer's ops made of these, for the others

    @property
    def num_tokens(self) -> int:
        return sum(self.query_lens)

    @property
    def num_rows(self) -> int:
        return len(self.query_lens)
