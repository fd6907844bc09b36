"""One JSON value read as it arrives (RFC 8259), so that its text can be passed on before it is whole.

Two slips that models make inside strings are mended on the way: raw control characters are escaped, and a backslash
that escapes nothing is doubled. Anything else that is no JSON fails at the character where it shows.
"""

from __future__ import annotations

import json
import re
from enum import Enum, auto
from typing import Any

_WHITE = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')  # what a string may hold as it is
_SCALAR_CHARACTERS = re.compile(r"[-+.0-9A-Za-z]*")
_SCALAR = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")
_HEX = frozenset("0123456789abcdefABCDEF")


class _Expects(Enum):
    VALUE = auto()
    VALUE_OR_END = auto()  # after [
    KEY = auto()
    KEY_OR_END = auto()  # after {
    COLON = auto()
    COMMA_OR_END = auto()
    STRING = auto()  # inside one
    ESCAPED = auto()  # after a backslash, which is held back
    HEX = auto()  # the digits after \u, held back with it
    SCALAR = auto()  # inside a number or a word
    NOTHING = auto()


class JsonScanner:
    """Reads one value. `done` once it is whole, `failed` once it cannot become one; `output` is its (mended) text."""

    __slots__ = ("_digits", "_expects", "_in_key", "_scalar", "_stack", "failed", "output")

    def __init__(self) -> None:
        self._expects = _Expects.VALUE
        self._stack: list[str] = []  # the closers that are due
        self._in_key = False
        self._digits = ""
        self._scalar: list[str] = []
        self.output: list[str] = []
        self.failed = False

    @property
    def done(self) -> bool:
        return self._expects is _Expects.NOTHING and not self.failed

    def take_output(self) -> str:
        """The text since the last call."""
        text = "".join(self.output)
        self.output.clear()
        return text

    def feed(self, text: str, start: int, stop: int) -> int:
        """Reads text[start:stop] as far as it belongs to the value; where it stopped."""
        at = start
        while at < stop and self._expects is not _Expects.NOTHING:
            if self._expects is _Expects.STRING:
                at = self._read_string(text, at, stop)
            elif self._expects is _Expects.ESCAPED:
                at = self._read_escaped(text, at)
            elif self._expects is _Expects.HEX:
                at = self._read_hex(text, at)
            elif self._expects is _Expects.SCALAR:
                at = self._read_scalar(text, at, stop)
            else:
                at = self._read_structure(text, at, stop)
        return at

    def finish(self) -> None:
        """The text ended: a number at the top is whole now, and what was held back comes out."""
        if self._expects is _Expects.SCALAR:
            self._end_scalar()
        if self._expects is _Expects.ESCAPED:
            self.output.append("\\")
        elif self._expects is _Expects.HEX:
            self.output.append("\\u" + self._digits)
        if not self.done:
            self._fail()

    def _fail(self) -> None:
        self._expects, self.failed = _Expects.NOTHING, True

    def _end_value(self) -> None:
        self._expects = _Expects.COMMA_OR_END if self._stack else _Expects.NOTHING

    def _read_string(self, text: str, at: int, stop: int) -> int:
        plain = _PLAIN.match(text, at, stop)
        assert plain is not None
        if plain.end() > at:
            self.output.append(plain.group())
            return plain.end()
        character = text[at]
        if character == '"':
            self.output.append(character)
            if self._in_key:
                self._expects = _Expects.COLON
            else:
                self._end_value()
        elif character == "\\":
            self._expects = _Expects.ESCAPED
        else:
            self.output.append(json.dumps(character)[1:-1])
        return at + 1

    def _read_escaped(self, text: str, at: int) -> int:
        character = text[at]
        self._expects = _Expects.STRING
        if character == "u":
            self._expects, self._digits = _Expects.HEX, ""
        elif character in '"\\/bfnrt':
            self.output.append("\\" + character)
        else:
            self.output.append("\\\\")
            return at
        return at + 1

    def _read_hex(self, text: str, at: int) -> int:
        if text[at] not in _HEX:
            self.output.append("\\\\u" + self._digits)
            self._expects = _Expects.STRING
            return at
        self._digits += text[at]
        if len(self._digits) == 4:
            self.output.append("\\u" + self._digits)
            self._expects = _Expects.STRING
        return at + 1

    def _read_scalar(self, text: str, at: int, stop: int) -> int:
        match = _SCALAR_CHARACTERS.match(text, at, stop)
        assert match is not None
        self._scalar.append(match.group())
        self.output.append(match.group())
        if match.end() < stop:
            self._end_scalar()
        return match.end()

    def _end_scalar(self) -> None:
        if _SCALAR.fullmatch("".join(self._scalar)):
            self._end_value()
        else:
            self._fail()
        self._scalar.clear()

    def _read_structure(self, text: str, at: int, stop: int) -> int:
        white = _WHITE.match(text, at, stop)
        assert white is not None
        if white.end() > at:
            self.output.append(white.group())
            return white.end()
        character, expects = text[at], self._expects
        starts_value = expects in (_Expects.VALUE, _Expects.VALUE_OR_END)
        if starts_value and character in "{[":
            self._stack.append("}" if character == "{" else "]")
            self._expects = _Expects.KEY_OR_END if character == "{" else _Expects.VALUE_OR_END
        elif starts_value and character in "-0123456789tfn":
            self._expects = _Expects.SCALAR
            return at
        elif character == '"' and (starts_value or expects in (_Expects.KEY, _Expects.KEY_OR_END)):
            self._in_key, self._expects = not starts_value, _Expects.STRING
        elif character == ":" and expects is _Expects.COLON:
            self._expects = _Expects.VALUE
        elif character == "," and expects is _Expects.COMMA_OR_END:
            self._expects = _Expects.KEY if self._stack[-1] == "}" else _Expects.VALUE
        elif (
            expects in (_Expects.COMMA_OR_END, _Expects.KEY_OR_END, _Expects.VALUE_OR_END)
            and character == self._stack[-1]
        ):
            self._stack.pop()
            self._end_value()
        else:
            self._fail()
            return at
        self.output.append(character)
        return at + 1


def quoted(text: str) -> str:
    """`text` as a JSON string, without its quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def load(text: str) -> Any:
    """The value of a JSON text. Raises ValueError for whatever is wrong with it, NaN and deep nesting too."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def dump(value: Any) -> str:
    """JSON text that UTF-8 can hold. Raises ValueError for what JSON has no word for."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        return text if _is_encodable(text) else json.dumps(value, allow_nan=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def load_string(text: str) -> str:
    """The value of a JSON string; half a surrogate pair becomes "?"."""
    value = load(text)
    assert isinstance(value, str)
    return value if _is_encodable(value) else value.encode("utf-8", "replace").decode("utf-8")


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
