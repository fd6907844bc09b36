"""Log-probabilities on their way from the device to a step's result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core.outputs import TokenLogprobs
from octavo.core.params import LogprobsMode, SamplingParams
from octavo.ops import sampling as ops
from octavo.ops.device import upload
from octavo.sampling.parts import Part, part_of

SMALL_TOP = 32  # requests for up to this many share one gather


@dataclass(frozen=True, slots=True)
class LogprobWish:
    """What one row asked for: the likeliest `num_top`, and `token_ids`, at each position."""

    num_top: int
    token_ids: list[int]
    mode: LogprobsMode


@dataclass(slots=True)
class LogprobBlock:
    """Of K rows of a batch: the sampled token, the N likeliest, best first, and M others; a row uses 1 + its `num_top`
    of the first and its `num_others` of the last."""

    batch_idx: list[int]  # which rows of the batch
    num_top: list[int]  # how many each asked for; N is the most of these
    num_others: list[int]
    token_ids: Tensor  # int64 [K, 1 + N + M]
    logprobs: Tensor  # float32 [K, 1 + N + M]; logits, where those were asked for
    ranks: Tensor  # int64 [K, 1 + N + M], from 1

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.token_ids, self.logprobs, self.ranks

    def rows(self, arrived: Sequence[Tensor] | None = None) -> Iterator[tuple[int, TokenLogprobs]]:
        """(row of the batch, its log-probabilities). `arrived` are its tensors on the host."""
        columns = [tensor.tolist() for tensor in arrived or self.tensors]
        first = 1 + max(self.num_top)
        for batch_idx, num_top, num_others, *row in zip(
            self.batch_idx, self.num_top, self.num_others, *columns, strict=True
        ):
            end, last = 1 + num_top, first + num_others
            yield batch_idx, TokenLogprobs(*(column[:end] + column[first:last] for column in row))


@dataclass(slots=True)
class LogprobGroup:
    """Rows of a batch that are looked up together."""

    part: Part
    num_top: list[int]
    num_others: list[int]
    others: Tensor | None  # int64 [K, M], padded with 0; None: nobody named any
    is_processed: bool  # what the draw is from; else what the model said
    is_logits: bool

    def block(self, logits_KV: Tensor, token_ids_S: Tensor) -> LogprobBlock:
        """`logits` of this part, `token_ids` of the whole batch."""
        ids, values, ranks = ops.gather_logprobs(logits_KV, self.part.take(token_ids_S), max(self.num_top))
        if self.is_logits:
            values = logits_KV.gather(1, ids)
        if self.others is not None:
            other_values = logits_KV.gather(1, self.others)
            if not self.is_logits:
                other_values -= ops.log_mass(logits_KV)
            ids = torch.cat([ids, self.others], dim=1)
            values = torch.cat([values, other_values], dim=1)
            ranks = torch.cat([ranks, ops.token_ranks(logits_KV, self.others)], dim=1)
        return LogprobBlock(self.part.members, self.num_top, self.num_others, ids, values, ranks)


class LogprobWishes:
    """Of the rows that ask for any."""

    def __init__(self, vocab_size: int, mode: LogprobsMode, device: torch.device) -> None:
        self._vocab_size, self._mode, self._device = vocab_size, mode, device
        self._rows: dict[int, LogprobWish] = {}

    def add(self, row: int, params: SamplingParams) -> None:
        others = [token_id for token_id in params.logprob_token_ids or () if token_id < self._vocab_size]
        if params.logprobs is None and not others:
            return
        num_top = self._vocab_size if params.logprobs == -1 else params.logprobs or 0
        self._rows[row] = LogprobWish(min(num_top, self._vocab_size), others, params.logprobs_mode or self._mode)

    def remove(self, row: int) -> None:
        self._rows.pop(row, None)

    def groups(self, rows_host: Sequence[int]) -> list[LogprobGroup]:
        """Rows of one mode and of like numbers, so that one request for the whole vocabulary does not make its
        neighbours' as wide."""
        found: dict[tuple[str, int, bool], list[tuple[int, LogprobWish]]] = {}
        for i, row in enumerate(rows_host) if self._rows else ():
            if row in self._rows:
                wish = self._rows[row]
                size = 0 if wish.num_top <= SMALL_TOP else wish.num_top.bit_length()
                found.setdefault((wish.mode, size, bool(wish.token_ids)), []).append((i, wish))
        return [self._group(mode, members, len(rows_host)) for (mode, _, _), members in found.items()]

    def _group(self, mode: str, members: list[tuple[int, LogprobWish]], num_rows: int) -> LogprobGroup:
        wishes = [wish for _, wish in members]
        num_others = [len(wish.token_ids) for wish in wishes]
        width = max(num_others)
        padded = [wish.token_ids + [0] * (width - len(wish.token_ids)) for wish in wishes]
        return LogprobGroup(
            part_of([i for i, _ in members], num_rows, self._device),
            [wish.num_top for wish in wishes],
            num_others,
            upload(padded, torch.int64, self._device) if width else None,
            is_processed=mode.startswith("processed"),
            is_logits=mode.endswith("logits"),
        )
