"""One request's way through its grammar, thoughts that come first included."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octavo.core.structured import Thinking
from octavo.structured.grammar import Grammar, Matcher, MatcherFailed
from octavo.structured.vocabulary import Vocabulary

_WHITE = b" \t\r\n"


class Follower:
    """Sees every output token once, in order; what it has seen it never sees again, so preemption does not concern it.

    With thoughts there are three states:

        undecided   the output may open thoughts, or begin with what is structured; both are followed
        thinking    anything goes, until an end tag
        structured  the grammar's matcher says what goes
    """

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary, thinking: Thinking | None) -> None:
        self._grammar, self._vocabulary = grammar, vocabulary
        self.matcher: Matcher | None = grammar.matcher()  # None: only thoughts can go on from here
        self.num_seen = 0
        self._openings: dict[bytes, list[bytes]] = {}  # that the text so far may become, and their ends
        self._ends: list[bytes] = []  # while thinking
        self._text = b""
        if thinking is not None and thinking.tags:
            tags = {begin.encode(): [end.encode() for end in ends] for begin, ends in thinking.tags.items()}
            if thinking.starts_inside:
                self._ends = [end for ends in tags.values() for end in ends]
            else:
                self._openings = tags

    @property
    def is_thinking(self) -> bool:
        return bool(self._ends)

    def follow(self, new: Sequence[int]) -> None:
        """Takes in output tokens that it has not seen. Raises MatcherFailed."""
        self.num_seen += len(new)
        if not self._ends and not self._openings:
            if new:
                self._accept(new)
            return
        for i, token_id in enumerate(new):
            if self._ends:
                self._think(self._piece(token_id))
            elif self._openings:
                self._decide(token_id)
            else:
                self._accept(new[i:])
                return

    def fill(self, bitmask: np.ndarray, row: int) -> None:
        """Not while thinking. Raises MatcherFailed."""
        if self.matcher is not None:
            self.matcher.fill(bitmask, row)
        else:
            bitmask[row] = 0
        for token_id in self.opening_ids():
            bitmask[row, token_id // 32] |= np.int32(_BITS[token_id % 32])

    def opening_ids(self) -> list[int]:
        """Tokens that go on with an opening tag."""
        ids: list[int] = []
        for begin in self._openings:
            rest = begin[len(self._text) :]
            for end in range(1, len(rest) + 1):
                ids += self._vocabulary.ids_of.get(rest[:end], ())
        return ids

    def _piece(self, token_id: int) -> bytes:
        return self._vocabulary.pieces[token_id] if token_id < self._vocabulary.size else b""

    def _accept(self, token_ids: Sequence[int]) -> None:
        if self.matcher is None or not self.matcher.accept(token_ids):
            raise MatcherFailed("the output has left its grammar")

    def _decide(self, token_id: int) -> None:
        self._text += self._piece(token_id)
        for begin, ends in self._openings.items():
            if self._text.startswith(begin):
                rest, self._text = self._text[len(begin) :], b""
                self._openings, self._ends = {}, ends
                self.matcher = None
                self._think(rest)
                return
        self._openings = {begin: ends for begin, ends in self._openings.items() if begin.startswith(self._text)}
        if self.matcher is not None and not self.matcher.accept((token_id,)):
            self.matcher = None
        if self.matcher is None and not self._openings:
            raise MatcherFailed("the output has left its grammar")

    def _think(self, piece: bytes) -> None:
        self._text += piece
        found = [(at, end) for end in self._ends if (at := self._text.find(end)) >= 0]
        if not found:
            self._text = self._text[-max(map(len, self._ends)) :]
            return
        at, end = min(found)
        rest = self._text[at + len(end) :].lstrip(_WHITE)
        self._ends, self._text = [], b""
        self.matcher = self._grammar.matcher()
        if rest:  # a token that ends the thoughts and goes on
            self._accept(self._vocabulary.encode(rest))


_BITS = np.left_shift(np.uint32(1), np.arange(32, dtype=np.uint32)).view(np.int32)
