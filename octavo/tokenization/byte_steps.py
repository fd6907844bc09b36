"""What bytes a token stands for, where that does not depend on its neighbours."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

Step = Callable[[str | bytes], str | bytes]


def bytes_of(token: str, steps: Sequence[Step]) -> bytes:
    value: str | bytes = token
    for step in steps:
        value = step(value)
    return value if isinstance(value, bytes) else value.encode("utf-8", "replace")


def byte_steps(decoder: dict[str, Any]) -> list[Step] | None:
    """A decoder of the `tokenizers` library, given as its JSON, as functions of one token; None if it is not that
    simple.

    Stripping the very first space of a text is left out: a completion continues its prompt.
    """
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    steps: list[Step] = []
    is_fused = False
    for part in parts:
        match part:
            case {"type": "Fuse"}:
                is_fused = True
            case {"type": "Strip", "content": " ", "start": 1, "stop": 0} if is_fused:
                pass
            case _ if is_fused:
                return None  # works on whole texts
            case {"type": "ByteLevel"}:
                steps.append(_from_byte_level)
            case {"type": "ByteFallback"}:
                steps.append(_from_byte_token)
            case {"type": "Replace", "pattern": {"String": pattern}, "content": content}:
                steps.append(_replacing(pattern, content))
            case {"type": "Metaspace", "replacement": replacement}:
                steps.append(_replacing(replacement, " "))
            case _:
                return None
    return steps


def _replacing(pattern: str, content: str) -> Step:
    return lambda value: value.replace(pattern, content) if isinstance(value, str) else value


def _from_byte_token(value: str | bytes) -> str | bytes:
    if isinstance(value, str) and (match := _BYTE_TOKEN.fullmatch(value)):
        return bytes([int(match[1], 16)])
    return value


def _from_byte_level(value: str | bytes) -> str | bytes:
    if isinstance(value, bytes):
        return value
    try:
        return bytes([_BYTE_OF_CHARACTER[character] for character in value])
    except KeyError:  # a token added as plain text
        return value.encode("utf-8", "replace")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


_BYTE_OF_CHARACTER = _byte_level_alphabet()
