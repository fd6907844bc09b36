"""What the runner sees of a model."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Protocol

import torch

from octavo.attention.backend import StepContext
from octavo.cache.spec import CacheSpec


class Model(Protocol):
    vocab_size: int

    @property
    def is_capturable(self) -> bool:
        """Whether steps may be padded, and their forward captured."""

    @property
    def reads_shared_prefix(self) -> bool:
        """Whether attention makes use of rows that share leading blocks."""

    def cache_specs(self) -> Mapping[str, CacheSpec]:
        """What each stateful layer keeps, by the layer's name, in layer order."""

    def bind_caches(self, parts: Mapping[str, Mapping[str, torch.Tensor]], group_of: Mapping[str, int]) -> None:
        """Hands each stateful layer its views (part name -> [num_blocks, *shape]) and its group's index."""

    def prepare(self) -> None:
        """Has backends begin to load what they need; in a rehearsal, to compile it."""

    def plan(self, step: StepContext) -> None:
        """Lets each group's backend fill `step.groups[g].plan`, once a step."""

    def graph_key(self, step: StepContext) -> Hashable:
        """Steps of one size with equal keys may share a captured graph, where the model is capturable."""

    def forward(self, input_ids: torch.Tensor, step: StepContext) -> torch.Tensor:
        """[T] int64 -> final hidden states [T, hidden]."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[S, hidden] -> [S, vocab_size], in the model's dtype or float32."""
