"""How the tokens of a step share out among the states of recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

SHORT_TOKENS = 4  # rows of more are long: kernels take these by chunks


@dataclass(frozen=True, slots=True)
class RowBounds:
    """What a kernel's launch has to know of its rows beside the sizes of tensors. Steps that share a captured graph
    have equal ones."""

    is_decode: bool  # no row has more than one token: then row r's token is r
    long_rows: int  # rows of more than SHORT_TOKENS are no more than this


def row_bounds(query_lens: Sequence[int]) -> RowBounds:
    """Of these rows, and of many other steps."""
    if max(query_lens, default=0) <= 1:
        return RowBounds(True, 0)
    num_long = sum(count > SHORT_TOKENS for count in query_lens)
    limit = next((size for size in (0, 8, 32, 128) if num_long <= size), len(query_lens))
    return RowBounds(False, min(limit, len(query_lens)))


@dataclass(slots=True)
class StateRows:
    """Which tokens and which states belong together: made once a step, for all layers whose states are in the same
    blocks.

    Row r's tokens are query_start[r] : query_start[r + 1], and its state is states[blocks[r]]; no two rows share a
    block. A fresh row starts from zeros, whatever its block holds (NaN included).

    A step may be padded where the ops that run it read its rows from tensors alone (`RowBounds` apart): the last rows
    then have no tokens, and their states stay as they are; what is computed for the last tokens is undefined. The
    specification takes no padding.
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

    @property
    def bounds(self) -> RowBounds:
        if "bounds" not in self.derived:
            self.derived["bounds"] = row_bounds(self.query_lens)
        return self.derived["bounds"]
