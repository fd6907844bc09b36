"""The rows of a batch that use a feature."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.ops.device import upload


@dataclass(slots=True)
class Part:
    """Some rows of a batch. `idx` is None when they are all of them, so that nothing needs to be gathered."""

    members: list[int]  # rows of the batch, ascending
    idx: Tensor | None

    def take(self, tensor: Tensor) -> Tensor:
        return tensor if self.idx is None else tensor[self.idx]

    def copy(self, tensor: Tensor) -> Tensor:
        """The same, and never the tensor itself."""
        return tensor.clone() if self.idx is None else tensor[self.idx]

    def put(self, tensor: Tensor, values: Tensor) -> Tensor:
        """`tensor` with `values` in this part's rows; written in place unless they are all its rows."""
        return values if self.idx is None else tensor.index_copy_(0, self.idx, values)


def part_of(members: list[int], num_rows: int, device: torch.device) -> Part:
    return Part(members, None if len(members) == num_rows else upload(members, torch.int64, device))


def users_part(rows_host: list[int], users: Container[int], device: torch.device) -> Part | None:
    """The rows of a batch that are among `users`; None where none is."""
    members = [i for i, row in enumerate(rows_host) if row in users] if users else []
    return part_of(members, len(rows_host), device) if members else None
