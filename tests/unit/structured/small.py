"""A vocabulary for the simulated device: 50 ids, of which 0 ends."""

from __future__ import annotations

import re

from octavo.structured.vocabulary import Vocabulary
from tests.simulation import END, VOCABULARY

PIECES = [
    b"<end>",
    *(bytes([byte]) for byte in b'{}[]":, .-0123456789abcdefghijklmnopqrstu'),
    b"ab",
    b"abc",
    b'":',
    b"<t>",
    b"</t>",
]
PIECES += [b""] * (VOCABULARY - len(PIECES))
assert len(PIECES) == VOCABULARY


def small_vocabulary() -> Vocabulary:
    return Vocabulary(VOCABULARY, PIECES, frozenset([END]), (END,))


def text_of(token_ids: list[int]) -> str:
    """Without what ends it."""
    return b"".join(PIECES[i] for i in token_ids if i != END).decode()


def fits(pattern: str, token_ids: list[int], max_tokens: int) -> bool:
    """Complete, or cut off for its length."""
    is_complete = token_ids[-1:] == [END]
    if is_complete:
        return re.fullmatch(pattern, text_of(token_ids)) is not None
    return len(token_ids) == max_tokens
