"""Log-probabilities of a prompt's own tokens: what a request wants, has and is waiting for.

Position p of a prompt scores token p + 1. Whoever holds rows holds them as bytes: of a long prompt they are many.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from octavo.core.params import LogprobsMode, SamplingParams
from octavo.errors import InvalidParameter, InvalidRequest

MAX_PROMPT_LOGPROB_BYTES = 1 << 30  # of one request, as rows: what a front end makes of them takes ten times as much
MAX_STORED_TOP = 32  # requests for more leave nothing in the prefix index: rows of a whole vocabulary would fill it
ITEM_BYTES = 4  # token id (int32), log-probability (float32), rank (int32): each

LOGPROBS, LOGITS = "prompt_logprobs", "prompt_logits"  # kinds of values, and of annotations of the prefix index


class PromptRows(msgspec.Struct, array_like=True, frozen=True):
    """Positions `first` to `first + count` of a prompt. Each has `width` entries: the token that follows there, then
    the top N, best first. `chosen` are those positions' values at the request's own choice of ids, row after row."""

    first: int
    count: int
    width: int = 0
    token_ids: bytes = b""  # int32 [count, width]
    logprobs: bytes = b""  # float32 [count, width]
    ranks: bytes = b""  # int32 [count, width], from 1
    chosen: bytes = b""  # float32 [positions of these that are asked for, K]

    @property
    def end(self) -> int:
        return self.first + self.count

    @property
    def num_bytes(self) -> int:
        return 3 * len(self.token_ids) + len(self.chosen)

    def next_token(self, position: int) -> int:
        """The token that position `position` was scored for."""
        at = (position - self.first) * self.width * ITEM_BYTES
        return int.from_bytes(self.token_ids[at : at + ITEM_BYTES], "little")

    def part(self, first: int, end: int, width: int) -> PromptRows:
        """Some of the positions, with the first `width` entries of each."""
        step, keep = self.width * ITEM_BYTES, width * ITEM_BYTES
        start, stop = (first - self.first) * step, (end - self.first) * step

        def cut(data: bytes) -> bytes:
            if keep == step:
                return data[start:stop]
            return b"".join([data[at : at + keep] for at in range(start, stop, step)])

        return PromptRows(first, end - first, width, cut(self.token_ids), cut(self.logprobs), cut(self.ranks))


def chosen_positions(params: SamplingParams, num_prompt_tokens: int) -> range:
    """The positions that `prompt_logprob_token_ids` are scored at."""
    token_ids = params.prompt_logprob_token_ids
    if not token_ids:
        return range(0)
    start, last = params.prompt_logprob_start, num_prompt_tokens - 1
    return range(start, max(start, min(last, start + len(token_ids)) if isinstance(token_ids[0], list) else last))


def check_prompt_logprobs(params: SamplingParams, num_prompt_tokens: int, vocab_size: int) -> None:
    """What can be said only once the prompt is known. Raises InvalidRequest."""
    num_positions, token_ids = num_prompt_tokens - 1, params.prompt_logprob_token_ids or []
    if token_ids:
        start = params.prompt_logprob_start
        if start > num_positions:
            limit = f"at most {num_positions}: the prompt has {num_prompt_tokens} tokens"
            raise InvalidParameter("prompt_logprob_start", start, limit)
        if isinstance(token_ids[0], list) and len(token_ids) > num_positions - start:
            raise InvalidRequest(
                f"prompt_logprob_token_ids has {len(token_ids)} rows, but the prompt of {num_prompt_tokens} tokens has "
                f"{num_positions - start} after prompt_logprob_start={start}",
                "prompt_logprob_token_ids",
            )
    asked = params.prompt_logprobs
    if asked is not None:
        width = 1 + (vocab_size if asked == -1 else min(asked, vocab_size))
        size = 3 * ITEM_BYTES * width * num_positions
        if size > MAX_PROMPT_LOGPROB_BYTES:
            raise InvalidRequest(
                f"prompt_logprobs {asked} of a prompt of {num_prompt_tokens} tokens would take {size / 2**30:.1f} GiB; "
                f"at most {MAX_PROMPT_LOGPROB_BYTES / 2**30:g} GiB can be had: ask for fewer, or for shorter prompts",
                "prompt_logprobs",
            )


@dataclass(slots=True)
class PromptScores:
    """Of one request, owned by the core's thread.

        | rows are here | computed by steps in flight | nobody has them yet |  nothing more is wanted
        0             known                       frontier                 end         num_prompt_tokens

    A prefix found in the cache may reach up to `frontier`, or anywhere once that is `end`. Rows may come out of order:
    those that were found in the cache beyond what a step in flight computes wait in `_ahead`.
    """

    num_top: int  # -1: only the request's own choice of ids is scored
    kind: str  # LOGPROBS or LOGITS
    chosen: range  # positions at which that choice is scored
    num_chosen: int  # ids of that choice at each
    end: int
    known: int = 0
    frontier: int = 0
    num_noted: int = 0  # positions whose rows were offered to the prefix index
    is_sent: bool = False
    _token_ids: bytearray = field(default_factory=bytearray)
    _logprobs: bytearray = field(default_factory=bytearray)
    _ranks: bytearray = field(default_factory=bytearray)
    _chosen: bytearray = field(default_factory=bytearray)
    _ahead: list[PromptRows] = field(default_factory=list)

    @classmethod
    def of(
        cls, params: SamplingParams, num_prompt_tokens: int, vocab_size: int, mode: LogprobsMode = "raw_logprobs"
    ) -> PromptScores | None:
        """None for a request that wants none. `mode` is for those that do not say theirs."""
        asked = params.prompt_logprobs
        if asked is None and not params.prompt_logprob_token_ids:
            return None
        chosen = chosen_positions(params, num_prompt_tokens)
        num_top = -1 if asked is None else vocab_size if asked == -1 else min(asked, vocab_size)
        kind = LOGITS if wants_logits(params, mode) else LOGPROBS
        num_chosen = len(params.prompt_logprob_rows(1)[0]) if chosen else 0
        scores = cls(num_top, kind, chosen, num_chosen, num_prompt_tokens - 1)
        if num_top < 0:
            scores.known = scores.frontier = min(chosen.start, scores.end)
            scores.end = max(scores.known, chosen.stop)
        return scores

    @property
    def width(self) -> int:
        """Entries of a row."""
        return 1 + self.num_top

    @property
    def row_bytes(self) -> int:
        return (3 * self.width + self.num_chosen) * ITEM_BYTES

    @property
    def is_planned(self) -> bool:
        """All of it is here or being computed."""
        return self.frontier >= self.end

    @property
    def is_shared(self) -> bool:
        """Others may be served by its rows, and it by theirs."""
        return 0 <= self.num_top <= MAX_STORED_TOP

    @property
    def limit_of_shared(self) -> int:
        """Up to where rows of others can serve: not where it has a choice of its own."""
        return self.chosen.start if self.frontier < self.chosen.stop else self.end

    def plan(self, start: int, stop: int) -> tuple[int, int] | None:
        """A step computes positions `start` to `stop`: which of them it must score, if any."""
        first, last = max(start, self.frontier), min(stop, self.end)
        if first >= last:
            return None
        self.frontier = last
        return first, last

    def add(self, rows: PromptRows) -> None:
        if rows.first != self.known:
            assert rows.first > self.known
            self._ahead.append(rows)
            return
        self._append(rows)
        while following := next((one for one in self._ahead if one.first == self.known), None):
            self._ahead.remove(following)
            self._append(following)

    def _append(self, rows: PromptRows) -> None:
        self._token_ids += rows.token_ids
        self._logprobs += rows.logprobs
        self._ranks += rows.ranks
        self._chosen += rows.chosen
        self.known = rows.end

    def part(self, first: int, end: int) -> PromptRows:
        """Of what is here."""
        size = self.width * ITEM_BYTES
        here = slice(first * size, end * size)
        columns = (bytes(column[here]) for column in (self._token_ids, self._logprobs, self._ranks))
        return PromptRows(first, end - first, self.width, *columns)

    def take(self) -> PromptRows | None:
        """All of it, once; None if not all is here."""
        if self.is_sent or self.known < self.end:
            return None
        self.is_sent = True
        columns = (bytes(column) for column in (self._token_ids, self._logprobs, self._ranks, self._chosen))
        first = 0 if self.num_top >= 0 else self.chosen.start
        rows = PromptRows(first, self.end - first, self.width, *columns)
        self._clear()
        return rows

    def restart(self) -> None:
        """The request starts over: what steps in flight compute will not come, what is here stays."""
        self._ahead.clear()
        self.frontier = self.known

    def forget(self) -> None:
        """What is here is in doubt."""
        if not self.is_sent:
            self._clear()
            self.known = self.frontier = self.num_noted = 0
            if self.num_top < 0:
                self.known = self.frontier = min(self.chosen.start, self.end)

    def _clear(self) -> None:
        for column in (self._token_ids, self._logprobs, self._ranks, self._chosen):
            column.clear()
        self._ahead.clear()


def wants_logits(params: SamplingParams, mode: LogprobsMode) -> bool:
    """Logits in place of log-probabilities. Nothing processes a prompt's: both modes of either kind are the same."""
    return (params.logprobs_mode or mode) in ("raw_logits", "processed_logits")
