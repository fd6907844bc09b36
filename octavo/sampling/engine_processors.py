"""The engine's own logits processors over the batches of steps, which sample any rows in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from octavo.ops.device import pins_memory
from octavo.sampling.processors import AddedRequest, BatchUpdate, LogitsProcessor, MoveDirectionality, MovedRequest
from octavo.sampling.request_processors import RowTokens


class EngineProcessors:
    """Tells the processors how each batch differs from the one before, and lets them change its logits.

    One that raises may have followed an update half way, so all of them are made anew before the next batch.
    """

    def __init__(self, classes: Sequence[type[LogitsProcessor]], config: Any, device: torch.device) -> None:
        self._classes, self._config, self._device = classes, config, device
        self._make()

    def _make(self) -> None:
        made = [cls(self._config, self._device, pins_memory(self._device)) for cls in self._classes]
        is_invariant = [processor.is_argmax_invariant() for processor in made]
        self._all = made
        self._changing = [processor for processor, is_so in zip(made, is_invariant, strict=True) if not is_so]
        self._invariant = [processor for processor, is_so in zip(made, is_invariant, strict=True) if is_so]
        self._batch: list[RowTokens] = []  # that they know of
        self._is_broken = False

    @property
    def has_invariant(self) -> bool:
        return bool(self._invariant)

    def update(self, batch: list[RowTokens]) -> None:
        """`batch` is in the order of the logits that follow."""
        if self._is_broken:
            self._make()
        update = difference(self._batch, batch)
        for processor in self._all:
            with self._blaming(processor):
                processor.update_state(update)
        self._batch = batch

    def change(self, logits_SV: Tensor) -> Tensor:
        """By those that may change which token is the likeliest."""
        return self._apply(self._changing, logits_SV)

    def change_scaled(self, logits_SV: Tensor) -> Tensor:
        """By the others."""
        return self._apply(self._invariant, logits_SV)

    def _apply(self, processors: list[LogitsProcessor], logits_SV: Tensor) -> Tensor:
        shape = logits_SV.shape
        for processor in processors:
            with self._blaming(processor):
                changed: Any = processor.apply(logits_SV)
                if not isinstance(changed, Tensor) or not changed.is_floating_point() or changed.shape != shape:
                    raise ValueError(f"returned {describe(changed)}, not logits of shape {list(shape)}")
                logits_SV = changed.float()
        return logits_SV

    @contextmanager
    def _blaming(self, processor: LogitsProcessor) -> Iterator[None]:
        """Says whose error it is."""
        try:
            yield
        except Exception as error:
            self._is_broken = True
            name = type(processor).__name__
            raise RuntimeError(f"logits processor {name}: {type(error).__name__}: {error}") from error


def describe(value: Any) -> str:
    """What somebody returned who should have returned logits."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"a tensor of shape {list(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"


def difference(before: Sequence[RowTokens], after: Sequence[RowTokens]) -> BatchUpdate | None:
    """What makes one batch of the other; None if they are the same. New rows take the places of those that have gone,
    then those behind the last; where somebody is at the wrong place, moves bring him to the right one."""
    if len(before) == len(after) and all(old is new for old, new in zip(before, after, strict=True)):
        return None
    staying, known = {id(row) for row in after}, {id(row) for row in before}
    slots: list[RowTokens | None] = [row if id(row) in staying else None for row in before]
    slots += [None] * (len(after) - len(before))
    free = {index for index, row in enumerate(slots) if row is None}
    new = [(index, row) for index, row in enumerate(after) if id(row) not in known]
    elsewhere = [row for index, row in new if index not in free]
    taken = [(index, row) for index, row in new if index in free]
    free -= {index for index, _ in taken}
    taken += zip(sorted(free), elsewhere, strict=False)
    added: list[AddedRequest] = []
    for index, row in sorted(taken, key=lambda pair: pair[0]):
        slots[index] = row
        added.append((index, row.params, row.prompt_token_ids, row.output_token_ids))
    removed = [index for index, row in enumerate(slots[: len(before)]) if row is None]
    moved: list[MovedRequest] = []
    place_of = {id(row): index for index, row in enumerate(slots) if row is not None}
    for index, row in enumerate(after):
        at, there = place_of[id(row)], slots[index]
        if at == index:
            continue
        is_swap = there is not None
        moved.append((at, index, MoveDirectionality.SWAP if is_swap else MoveDirectionality.UNIDIRECTIONAL))
        slots[index], slots[at] = row, there
        place_of[id(row)] = index
        if there is not None:
            place_of[id(there)] = at
    return BatchUpdate(len(after), removed, added, moved)
