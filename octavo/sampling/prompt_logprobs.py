"""Log-probabilities of prompts: hidden states of scored positions → rows, a slice of logits at a time.

Whatever the vocabulary and the prompt, no more than SLICE_BYTES of float32 logits exist at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.core.params import LogprobsMode, SamplingParams
from octavo.core.prompt_logprobs import PromptRows, chosen_positions, wants_logits
from octavo.ops import sampling as ops
from octavo.ops.device import upload, upload_array
from octavo.sampling.logprobs import SMALL_TOP

SLICE_BYTES = 1 << 26


@dataclass(slots=True)
class Wanted:
    """What one row wants of its prompt."""

    num_top: int  # -1: only `token_ids` are scored
    is_logits: bool
    chosen: range  # positions that score `token_ids`
    token_ids: Tensor | None = None  # int64, [K] for all of them or [positions, K]

    @property
    def kind(self) -> tuple[int, bool]:
        """Rows of one kind share slices, so that one that wants the whole vocabulary makes no other's rows as wide."""
        return 0 if self.num_top <= SMALL_TOP else self.num_top.bit_length(), self.is_logits


@dataclass(slots=True)
class Segment:
    """Positions `first` to `end` of one row's prompt, whose hidden states are those from `start` on."""

    request_id: str
    row: int
    start: int
    first: int
    end: int


@dataclass(slots=True)
class ScoredBlock:
    """Of rows of one kind, on its way to the host."""

    segments: list[tuple[Segment, Wanted]]
    tensors: list[Tensor]  # ids int32, values float32, ranks int32, each [positions, 1 + N]; then each one's own choice

    def rows(self, arrived: Sequence[Tensor]) -> Iterator[tuple[str, PromptRows | None]]:
        """By request; None if its values are not finite. `arrived` are its tensors on the host."""
        token_ids, values, ranks = (tensor.numpy() for tensor in arrived[:3])
        choices = iter(arrived[3:])
        at = 0
        for segment, wanted in self.segments:
            count, width = segment.end - segment.first, 1 + wanted.num_top
            here = np.s_[at : at + count, :width]
            at += count
            chosen = next(choices).numpy() if _overlap(segment, wanted) else np.empty(0, np.float32)
            if np.isnan(values[here]).any() or np.isnan(chosen).any():
                yield segment.request_id, None
                continue
            yield (
                segment.request_id,
                PromptRows(
                    segment.first,
                    count,
                    width,
                    token_ids[here].tobytes(),
                    values[here].tobytes(),
                    ranks[here].tobytes(),
                    chosen.tobytes(),
                ),
            )


class PromptScorer:
    """Knows what live rows want. `logits` makes [n, V] of [n, hidden]; `tokens` is the row table's; `mode` is for
    requests that do not say theirs. Owned by the runner's thread."""

    def __init__(
        self,
        vocab_size: int,
        logits: Callable[[Tensor], Tensor],
        tokens: Tensor,
        slice_bytes: int = SLICE_BYTES,
        mode: LogprobsMode = "raw_logprobs",
    ) -> None:
        self._mode: LogprobsMode = mode
        self._vocab_size, self._logits, self._tokens = vocab_size, logits, tokens
        self._slice = max(1, slice_bytes // (4 * vocab_size))
        self._wanted: dict[int, Wanted] = {}

    def add_row(self, row: int, params: SamplingParams, num_prompt_tokens: int) -> None:
        asked = params.prompt_logprobs
        chosen = chosen_positions(params, num_prompt_tokens)
        if asked is None and not chosen:
            return
        num_top = -1 if asked is None else self._vocab_size if asked == -1 else min(asked, self._vocab_size)
        wanted = self._wanted[row] = Wanted(num_top, wants_logits(params, self._mode), chosen)
        if chosen:
            wanted.token_ids = upload(params.prompt_logprob_token_ids or [], torch.int64, self._tokens.device)

    def remove_row(self, row: int) -> None:
        self._wanted.pop(row, None)

    def score(self, hidden: Tensor, segments: Sequence[Segment]) -> list[ScoredBlock]:
        """Everything that runs on the device."""
        groups: dict[tuple[int, bool], list[tuple[Segment, Wanted]]] = {}
        for segment in segments:
            wanted = self._wanted[segment.row]
            groups.setdefault(wanted.kind, []).append((segment, wanted))
        return [self._score(hidden, members) for members in groups.values()]

    def _score(self, hidden: Tensor, members: list[tuple[Segment, Wanted]]) -> ScoredBlock:
        device = hidden.device
        counts = [segment.end - segment.first for segment, _ in members]
        total, num_top = sum(counts), max(wanted.num_top for _, wanted in members)
        places = [np.arange(segment.start, segment.start + n) for (segment, _), n in zip(members, counts, strict=True)]
        rows = np.repeat([segment.row for segment, _ in members], counts)
        following = [np.arange(segment.first + 1, segment.end + 1) for segment, _ in members]
        packed = upload_array(np.stack([np.concatenate(places), rows, np.concatenate(following)]), device)
        place, row, after = packed.unbind()
        targets = self._tokens[row, after].long()
        token_ids = torch.empty(total, 1 + num_top, dtype=torch.int32, device=device)
        values = torch.empty(total, 1 + num_top, dtype=torch.float32, device=device)
        ranks = torch.empty_like(token_ids)
        choices = [
            torch.empty(len(both), wanted.token_ids.shape[-1], dtype=torch.float32, device=device)
            for segment, wanted in members
            if (both := _overlap(segment, wanted)) and wanted.token_ids is not None
        ]
        for first in range(0, total, self._slice):
            here = slice(first, min(first + self._slice, total))
            logits = self._logits(hidden[place[here]]).float()
            if num_top >= 0:
                ids, logprobs, rank = ops.gather_logprobs(logits, targets[here], num_top)
                token_ids[here], ranks[here] = ids, rank
                values[here] = logits.gather(1, ids) if members[0][1].is_logits else logprobs
            if choices:
                _choose(logits, here, members, choices)
        return ScoredBlock(members, [token_ids, values, ranks, *choices])


def _overlap(segment: Segment, wanted: Wanted) -> range:
    """The positions of a segment that score the row's own choice."""
    first, end = max(segment.first, wanted.chosen.start), min(segment.end, wanted.chosen.stop)
    return range(first, max(first, end))


def _choose(logits: Tensor, here: slice, members: list[tuple[Segment, Wanted]], choices: list[Tensor]) -> None:
    """Fills the part of `choices` that the logits of one slice have."""
    at, choice = 0, iter(choices)
    mass = None if members[0][1].is_logits else ops.log_mass(logits)
    for segment, wanted in members:
        both = _overlap(segment, wanted)
        if both:
            target = next(choice)
            shift = at - segment.first  # from a position to its place among all of the members'
            first, end = max(both.start + shift, here.start), min(both.stop + shift, here.stop)
            if first < end:
                own = slice(first - here.start, end - here.start)
                token_ids = wanted.token_ids
                assert token_ids is not None
                if token_ids.dim() == 2:
                    start = first - shift - wanted.chosen.start
                    token_ids = token_ids[start : start + end - first]
                else:
                    token_ids = token_ids.expand(end - first, -1)
                found = logits[own].gather(1, token_ids)
                begin = first - shift - both.start
                target[begin : begin + end - first] = found if mass is None else found - mass[own]
        at += segment.end - segment.first
