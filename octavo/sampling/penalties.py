"""What penalties need to know of a request's tokens, on the device, for the rows that use them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from octavo.ops import sampling as ops
from octavo.ops.device import upload

INITIAL_SLOTS = 4


class TokenCounts:
    """One slot a penalised row: which tokens its prompt has, and how often each is in its output.

        slot        prompt_mask [slots, V] bool      output_counts [slots, V] int32
        0 (row 17)  . x . . x ...                    0 0 2 0 1 ...
        1 (free)

    The tables are made when the first row needs them, doubled when full and dropped with the last row. `count` adds a
    sampled token on the device, so the next step sees it before the host does.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size, self.device = vocab_size, device
        self.slot_of_row: dict[int, int] = {}
        self._free: list[int] = []
        self._prompt_mask = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)
        self._output_counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)

    @property
    def num_slots(self) -> int:
        return self._output_counts.shape[0]

    def add(self, row: int, prompt_token_ids: Iterable[int], output_token_ids: Iterable[int]) -> None:
        """Ids outside the vocabulary (placeholders of media) count for nothing."""
        if not self._free:
            self._resize(max(INITIAL_SLOTS, 2 * self.num_slots))
        slot = self.slot_of_row[row] = self._free.pop()
        prompt_ids = self._upload(set(prompt_token_ids))
        self._prompt_mask[slot].zero_().index_fill_(0, prompt_ids, True)
        output_ids = self._upload(output_token_ids)
        ones = torch.ones_like(output_ids, dtype=torch.int32)
        self._output_counts[slot].zero_().index_add_(0, output_ids, ones)

    def remove(self, row: int) -> None:
        self._free.append(self.slot_of_row.pop(row))
        if not self.slot_of_row:
            self._free.clear()
            self._resize(0)

    def slots(self, rows: Iterable[int]) -> Tensor:
        """The slots of penalised `rows`, int64."""
        return upload([self.slot_of_row[row] for row in rows], torch.int64, self.device)

    def penalise(
        self, logits_KV: Tensor, slots_K: Tensor, repetition_K: Tensor, frequency_K: Tensor, presence_K: Tensor
    ) -> Tensor:
        return ops.apply_penalties(
            logits_KV, self._prompt_mask[slots_K], self._output_counts[slots_K], repetition_K, frequency_K, presence_K
        )

    def count(self, slots_K: Tensor, token_ids_K: Tensor) -> None:
        """Adds one token to the output of each slot."""
        places_K = slots_K * self.vocab_size + token_ids_K
        self._output_counts.view(-1).index_add_(0, places_K, torch.ones_like(places_K, dtype=torch.int32))

    def _upload(self, token_ids: Iterable[int]) -> Tensor:
        inside = [token_id for token_id in token_ids if 0 <= token_id < self.vocab_size]
        return upload(inside, torch.int64, self.device)

    def _resize(self, num_slots: int) -> None:
        kept = min(self.num_slots, num_slots)
        prompt_mask = self._prompt_mask.new_zeros(num_slots, self.vocab_size)
        output_counts = self._output_counts.new_zeros(num_slots, self.vocab_size)
        prompt_mask[:kept] = self._prompt_mask[:kept]
        output_counts[:kept] = self._output_counts[:kept]
        self._prompt_mask, self._output_counts = prompt_mask, output_counts
        self._free.extend(range(kept, num_slots))
