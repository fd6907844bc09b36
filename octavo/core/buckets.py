"""The sizes of steps that are captured as graphs: arithmetic that planning and padding have in common."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Buckets:
    """The sizes that steps are padded to. Steps of one token a row have as many tokens as rows; others have close
    sizes of tokens, and few of rows."""

    def __init__(self, max_rows: int, max_tokens: int, largest: int = 8192) -> None:
        self.decode = _up_to(max_rows, [1, 2, 4, *range(8, 256, 8), *range(256, 512, 16), *range(512, 1025, 32)])
        self.mixed_tokens = _up_to(min(max_tokens, largest), _close_sizes(largest))
        self.mixed_rows = _up_to(max_rows, [16, 64, 256, 1024])

    def fit(self, num_tokens: int, num_rows: int) -> tuple[int, int] | None:
        """(tokens, rows) of the smallest bucket; None if there is none so large."""
        if num_tokens == num_rows:
            rows = _least(self.decode, num_rows)
            return None if rows is None else (rows, rows)
        tokens, rows = _least(self.mixed_tokens, num_tokens), _least(self.mixed_rows, num_rows)
        return None if tokens is None or rows is None else (tokens, rows)

    def around(self, num_tokens: int) -> tuple[int, int]:
        """The nearest sizes of a mixed step that are at most and at least this, which is no more than the largest; 0
        where there is none so small."""
        place = bisect_left(self.mixed_tokens, num_tokens)
        above = self.mixed_tokens[place]
        return above if above == num_tokens else self.mixed_tokens[place - 1] if place else 0, above


class ExactSizes:
    """Each size is one of its own, up to `most_tokens`: where a graph costs little, and padding costs work."""

    decode: tuple[int, ...] = ()
    mixed_rows: tuple[int, ...] = ()
    mixed_tokens: tuple[int, ...] = ()

    def __init__(self, most_tokens: int = 512) -> None:
        self._most_tokens = most_tokens

    def fit(self, num_tokens: int, num_rows: int) -> tuple[int, int] | None:
        """None for a step so large that its graph would save nothing to speak of."""
        return (num_tokens, num_rows) if num_tokens <= self._most_tokens else None


def _least(sizes: Sequence[int], wanted: int) -> int | None:
    return next((size for size in sizes if size >= wanted), None)


def _up_to(limit: int, sizes: list[int]) -> list[int]:
    return [*(size for size in sizes if size < limit), limit] if limit <= sizes[-1] else sizes


def _close_sizes(largest: int) -> list[int]:
    """At most an eighth apart, multiples of 16."""
    sizes = [16]
    while sizes[-1] < largest:
        step = max(16, 1 << max(0, sizes[-1].bit_length() - 4))
        sizes.append(min(largest, sizes[-1] + step))
    return sizes
