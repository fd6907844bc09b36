"""What a grammar backend is: it compiles a form into a grammar, and a grammar's matchers follow one output each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from octavo.core.structured import StructuredOutputsParams
from octavo.structured.vocabulary import Vocabulary


class Unsupported(Exception):
    """A backend cannot honour all of a form. Says what it cannot, by its name."""


class Malformed(ValueError):
    """No backend could make anything of a form. Says why."""


class MatcherFailed(Exception):
    """A matcher cannot go on: a limit was met, or the output left the grammar."""


class Matcher(Protocol):
    """Follows one output. Owned by the engine's thread. Any call may raise MatcherFailed."""

    def fill(self, bitmask: np.ndarray, row: int) -> None:
        """Sets the bits of the tokens that may come next, of an int32 [rows, words] array: token t is bit t % 32 of
        word t // 32. The vocabulary's end tokens are among them where the output may end."""

    def accept(self, token_ids: Sequence[int]) -> bool:
        """Goes on by these tokens, none of them an end token. False if the grammar does not have them."""

    def validate(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens could be accepted. Changes nothing."""

    def rollback(self, num_tokens: int) -> None:
        """Takes back the tokens accepted last, at most 32 of them."""


class Grammar(Protocol):
    """A compiled form. May be shared between threads."""

    def matcher(self) -> Matcher: ...


class Backend(Protocol):
    name: str

    def __init__(self, vocabulary: Vocabulary, num_threads: int = 1) -> None:
        """Raises ImportError where its library is absent."""

    def compile(self, form: StructuredOutputsParams) -> Grammar:
        """Raises Unsupported, and ValueError for what nobody could do."""
