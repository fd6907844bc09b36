"""What users give, as the types that fields declare. Each raises InvalidParameter with field, value and limit."""

from __future__ import annotations

import math
import numbers
from typing import Any

from octavo.errors import InvalidParameter

INT64 = 2**63


def as_number(field: str, value: object) -> float:
    """A finite float from any real number; booleans are not numbers."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidParameter(field, value, "a number")
    try:
        number = float(value)
    except OverflowError:
        raise InvalidParameter(field, "a number too large for a float", "a finite number") from None
    if not math.isfinite(number):
        raise InvalidParameter(field, value, "a finite number")
    return number


def as_number_between(field: str, value: object, low: float, high: float) -> float:
    number = as_number(field, value)
    if not low <= number <= high:
        raise InvalidParameter(field, value, f"from {low:g} to {high:g}")
    return number


def as_integer(field: str, value: object, kind: str = "an integer") -> int:
    """An int that fits 64 bits, so that it can travel and lie in a tensor; booleans are not integers."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidParameter(field, value, kind)
    number = int(value)
    if not -INT64 <= number < INT64:
        raise InvalidParameter(field, f"an integer of {number.bit_length()} bits", f"{kind} within 64 bits")
    return number


def as_integer_from(field: str, value: object, least: int, note: str = "") -> int:
    number = as_integer(field, value)
    if number < least:
        raise InvalidParameter(field, value, f"at least {least}{note}")
    return number


def as_items(field: str, value: object, kind: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list | tuple | set | frozenset):
        raise InvalidParameter(field, value, kind)
    return list(value)


def as_token_ids(field: str, value: object) -> list[int]:
    """Each once, in the order given."""
    token_ids = [
        as_integer(field, token_id, "a list of integers") for token_id in as_items(field, value, "a list of integers")
    ]
    if any(token_id < 0 for token_id in token_ids):
        raise InvalidParameter(field, token_ids, "free of negative ids")
    return list(dict.fromkeys(token_ids))


def check_inside(field: str, token_ids: list[int], vocab_size: int) -> None:
    outside = [token_id for token_id in token_ids if token_id >= vocab_size]
    if outside:
        raise InvalidParameter(field, outside, f"below the vocabulary size {vocab_size}")
