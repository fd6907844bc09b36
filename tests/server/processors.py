"""Logits processors for the servers of tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from octavo.sampling.processors import BatchUpdate, LogitsProcessor, MoveDirectionality

Processor = Callable[[list[int], Tensor], Tensor]


def only(token_ids: list[int]) -> Processor:
    allowed = torch.tensor(token_ids)

    def process(output: list[int], logits: Tensor) -> Tensor:
        return torch.full_like(logits, -torch.inf).index_copy_(0, allowed, logits[allowed])

    return process


def fails(after: int) -> Processor:
    def process(output: list[int], logits: Tensor) -> Tensor:
        if len(output) >= after:
            raise LookupError("as asked")
        return logits

    return process


class Target(LogitsProcessor):
    """Of the engine. `extra_args={"target": N}`: no token but N."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        target = (sampling_params.extra_args or {}).get("target", 0)
        if not isinstance(target, int):
            raise ValueError(f"target must be a token id, got {target!r}")

    def __init__(self, config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.targets: dict[int, int | None] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.targets.pop(index, None)
        for index, params, _, _ in batch_update.added:
            self.targets[index] = (params.extra_args or {}).get("target")
        for source, destination, way in batch_update.moved:
            replaced = self.targets.pop(destination, None)
            self.targets[destination] = self.targets.pop(source, None)
            if way == MoveDirectionality.SWAP:
                self.targets[source] = replaced

    def apply(self, logits: Tensor) -> Tensor:
        for index, target in self.targets.items():
            if target is not None:
                kept = logits[index, target].clone()
                logits[index] = -torch.inf
                logits[index, target] = kept
        return logits
