"""What requests want of single tokens: allowed ones, biases, words that must not come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.core.params import SamplingParams
from octavo.ops import sampling as ops
from octavo.ops.device import upload, upload_array


@dataclass(frozen=True, slots=True)
class TokenHistory:
    """The device's own record: `tokens[row, :length[row]]` are the prompt and the output of a row so far."""

    tokens: Tensor  # int32 [rows, width]
    length: Tensor  # int64 [rows]


@dataclass(slots=True)
class _Words:
    """Bad words of more than one token. All but a word's last token are its beginning."""

    beginnings: Tensor  # int32 [N, P], right-aligned; -1 where a word has fewer
    num_before: Tensor  # int64 [N]: tokens of each beginning
    last_ids: Tensor  # int64 [N]


@dataclass(slots=True)
class _RowEdits:
    """What one row brings, on the device."""

    allowed: Tensor | None  # int32 [W]: token t is bit t % 32 of word t // 32
    token_ids: Tensor  # int64 [M]
    values: Tensor  # float32 [M], to be added; minus infinity is a ban
    words: _Words | None


@dataclass(slots=True)
class BatchEdits:
    """The edits of the rows of one batch, joined. `places` are rows of the batch."""

    allowed_places: Tensor | None  # int64 [K]
    allowed_bits: Tensor | None  # int32 [K, W]
    places: Tensor | None  # int64 [M]
    token_ids: Tensor  # int64 [M]
    values: Tensor  # float32 [M]
    word_places: Tensor | None  # int64 [N]
    words: _Words | None

    def apply(
        self, logits_SV: Tensor, rows_S: Tensor, output_positions_S: Tensor, history: TokenHistory | None
    ) -> None:
        """In place. `rows_S` are the rows' places in the history, which only words of several tokens need."""
        if self.allowed_places is not None and self.allowed_bits is not None:
            ops.apply_bitmask(logits_SV, self.allowed_places, self.allowed_bits)
        if self.places is not None:
            logits_SV.index_put_((self.places, self.token_ids), self.values, accumulate=True)
        if self.word_places is not None and self.words is not None:
            assert history is not None
            is_due_N = self._is_due(self.word_places, self.words, rows_S, output_positions_S, history)
            bans_N = torch.zeros_like(is_due_N, dtype=logits_SV.dtype).masked_fill_(is_due_N, -torch.inf)
            logits_SV.index_put_((self.word_places, self.words.last_ids), bans_N, accumulate=True)

    @staticmethod
    def _is_due(places_N: Tensor, words: _Words, rows_S: Tensor, positions_S: Tensor, history: TokenHistory) -> Tensor:
        """Which words the next token could complete: the latest tokens of the output are a word's beginning."""
        rows_N, width = rows_S[places_N], words.beginnings.shape[1]
        offsets_P = torch.arange(-width, 0, device=rows_N.device)
        latest_NP = history.tokens[rows_N[:, None], (history.length[rows_N][:, None] + offsets_P).clamp_(min=0)]
        is_equal_NP = (latest_NP == words.beginnings) | (words.beginnings < 0)
        return is_equal_NP.all(-1) & (positions_S[places_N] >= words.num_before)


class TokenEdits:
    """Each row's edits lie on the device from when it comes until it goes; those of a batch are joined when the batch
    changes, not in every step. All of them are additions (a ban adds minus infinity), so their order says nothing."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size, self._device = vocab_size, device
        self._rows: dict[int, _RowEdits] = {}

    def add(self, row: int, params: SamplingParams) -> None:
        """Nothing, if the request edits nothing. Ids outside the vocabulary say nothing."""
        biases = {i: bias for i, bias in (params.logit_bias or {}).items() if 0 <= i < self._vocab_size}
        sequences = [word for word in params.bad_words_token_ids or () if self._is_inside(word)]
        bans = {word[0] for word in sequences if len(word) == 1}
        words = [word for word in sequences if len(word) > 1]
        if not biases and not sequences and params.allowed_token_ids is None:
            return
        self._rows[row] = _RowEdits(
            None if params.allowed_token_ids is None else self._bits(params.allowed_token_ids),
            upload([*biases, *bans], torch.int64, self._device),
            upload([*biases.values(), *[-torch.inf] * len(bans)], torch.float32, self._device),
            self._words(words) if words else None,
        )

    def remove(self, row: int) -> None:
        self._rows.pop(row, None)

    def batch(self, rows_host: Sequence[int]) -> BatchEdits | None:
        """Of the rows of a batch; None where none of them edits anything."""
        found = [(i, self._rows[row]) for i, row in enumerate(rows_host) if row in self._rows] if self._rows else []
        if not found:
            return None
        allowed = [(i, edits.allowed) for i, edits in found if edits.allowed is not None]
        added = [(i, edits) for i, edits in found if edits.token_ids.numel()]
        words = [(i, edits.words) for i, edits in found if edits.words is not None]
        empty = self._rows[rows_host[found[0][0]]].token_ids[:0]
        return BatchEdits(
            self._upload([i for i, _ in allowed]) if allowed else None,
            torch.stack([bits for _, bits in allowed]) if allowed else None,
            self._repeat([(i, edits.token_ids.numel()) for i, edits in added]) if added else None,
            torch.cat([edits.token_ids for _, edits in added]) if added else empty,
            torch.cat([edits.values for _, edits in added]) if added else empty.float(),
            self._repeat([(i, one.last_ids.numel()) for i, one in words]) if words else None,
            _join([one for _, one in words]) if words else None,
        )

    def _is_inside(self, token_ids: Iterable[int]) -> bool:
        return all(0 <= token_id < self._vocab_size for token_id in token_ids)

    def _bits(self, token_ids: Iterable[int]) -> Tensor:
        inside = np.array([i for i in token_ids if 0 <= i < self._vocab_size], dtype=np.int64)
        bits = np.zeros(-(-self._vocab_size // 32) * 32, dtype=np.uint8)
        bits[inside] = 1
        return upload_array(np.packbits(bits, bitorder="little").view(np.int32), self._device)

    def _words(self, words: list[list[int]]) -> _Words:
        width = max(map(len, words)) - 1
        beginnings = np.full((len(words), width), -1, dtype=np.int32)
        for i, word in enumerate(words):
            beginnings[i, width - len(word) + 1 :] = word[:-1]
        return _Words(
            upload_array(beginnings, self._device),
            self._upload([len(word) - 1 for word in words]),
            self._upload([word[-1] for word in words]),
        )

    def _repeat(self, counted: list[tuple[int, int]]) -> Tensor:
        """Each number as often as it says."""
        values, counts = np.array(counted, dtype=np.int64).T
        return upload_array(np.repeat(values, counts), self._device)

    def _upload(self, values: list[int]) -> Tensor:
        return upload(values, torch.int64, self._device)


def _join(parts: list[_Words]) -> _Words:
    width = max(one.beginnings.shape[1] for one in parts)
    widened = [torch.nn.functional.pad(one.beginnings, (width - one.beginnings.shape[1], 0), value=-1) for one in parts]
    return _Words(
        torch.cat(widened), torch.cat([one.num_before for one in parts]), torch.cat([one.last_ids for one in parts])
    )
