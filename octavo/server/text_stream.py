"""Text that arrives in pieces, read as if it were all there: parsers are generators that wait in the middle of a line.

A parser yields an event, or None when it needs more text than there is. Nothing here, and nothing a parser does,
may depend on where the text was cut: every decision waits until the characters it needs have come, or will not come.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import TypeVar

from octavo.server.json_stream import JsonScanner, load_string
from octavo.server.output_events import Event

_T = TypeVar("_T")
Steps = Generator[Event | None, None, _T]  # yields events and, to wait for text, None; returns _T

WHITE = " \t\r\n"
_WHITE_RUN = re.compile(r"[ \t\r\n]*")


class TextStream:
    """A cursor over the text. Owned by one parser; the buffer holds only what could not be decided yet.

    While a record is kept, what is read is also remembered: a parser that finds it was misled gives it back as text.
    """

    __slots__ = ("_at", "_record", "_text", "ended")

    def __init__(self) -> None:
        self._text, self._at = "", 0
        self._record: list[str] | None = None
        self.ended = False

    # --- the side that has the text ---

    def push(self, text: str) -> None:
        self._text = self._text[self._at :] + text
        self._at = 0

    def end(self) -> None:
        self.ended = True

    # --- the record ---

    def record(self, before: str = "") -> None:
        """Remember what is read from here on, after `before`."""
        self._record = [before]

    def commit(self) -> None:
        """What was read is markup for certain: forget it, and stop remembering."""
        self._record = None

    def take_record(self) -> str:
        taken = "" if self._record is None else "".join(self._record)
        self._record = None
        return taken

    def _advance(self, to: int) -> str:
        taken = self._text[self._at : to]
        if self._record is not None:
            self._record.append(taken)
        self._at = to
        return taken

    # --- reading ---

    def peek(self) -> Steps[str]:
        """The next character, "" at the end of the text."""
        while self._at == len(self._text):
            if self.ended:
                return ""
            yield None
        return self._text[self._at]

    @property
    def is_at_end(self) -> bool:
        """There is no more text, and there will be none."""
        return self.ended and self._at == len(self._text)

    def accept(self, literal: str, cut_off: bool = False) -> Steps[bool]:
        """Reads `literal` if it comes next."""
        return bool((yield from self.accept_any((literal,), cut_off)))

    def accept_any(self, literals: tuple[str, ...], cut_off: bool = False) -> Steps[str]:
        """Reads the one of `literals` that comes next, "" if none does. None may begin another.

        With `cut_off`, the beginning of one counts as it where the text breaks off.
        """
        while True:
            partial = ""
            for literal in literals:
                here = self._text[self._at : self._at + len(literal)]
                if here == literal:
                    self._advance(self._at + len(literal))
                    return literal
                if literal.startswith(here):
                    partial = literal
            if not partial:
                return ""
            if self.ended:
                if not cut_off or self.is_at_end:
                    return ""
                self._advance(len(self._text))
                return partial
            yield None

    def run(self, allowed: re.Pattern[str], limit: int | None = None) -> Steps[str]:
        """Reads characters while `allowed` (a class, repeated) matches them, `limit` at most."""
        taken, left = [], limit
        while True:
            stop = len(self._text) if left is None else min(len(self._text), self._at + left)
            match = allowed.match(self._text, self._at, stop)
            assert match is not None  # the class is repeated with *
            taken.append(self._advance(match.end()))
            left = None if left is None else left - len(taken[-1])
            if self._at < len(self._text) or left == 0 or self.ended:
                return "".join(taken)
            yield None

    def whitespace(self) -> Steps[str]:
        return (yield from self.run(_WHITE_RUN))

    def json_value(
        self, scanner: JsonScanner, event: Callable[[str], Event] | None = None, limit: int | None = None
    ) -> Steps[bool]:
        """Reads a JSON value, `limit` characters at most, its text as events. False where it stops being one."""
        left = limit
        while True:
            stop = len(self._text) if left is None else min(len(self._text), self._at + left)
            end = scanner.feed(self._text, self._at, stop)
            left = None if left is None else left - (end - self._at)
            self._advance(end)
            if self.ended and end == len(self._text) and not scanner.done:
                scanner.finish()
            if event is not None and (text := scanner.take_output()):
                yield event(text)
            if scanner.done:
                return True
            if scanner.failed or left == 0:
                return False
            yield None

    def json_string(self, limit: int | None = None) -> Steps[str | None]:
        """Reads a JSON string, `limit` characters at most, and returns what it says. None if none comes next."""
        if (yield from self.peek()) != '"':
            return None
        scanner = JsonScanner()
        if not (yield from self.json_value(scanner, limit=limit)):
            return None
        return load_string(scanner.take_output())

    def piece(self, markers: tuple[str, ...]) -> Steps[tuple[str, str]]:
        """Reads on: (text, the marker after it, or "" if there may be more text before one). ("", "") at the end.

        No marker may contain another.
        """
        while True:
            if markers:
                match = _any_of(markers).search(self._text, self._at)
                if match is not None:
                    text = self._advance(match.start())
                    self._advance(match.end())
                    return text, match.group()
            stop = len(self._text) if self.ended else self._start_of_partial(markers)
            if stop > self._at or self.ended:
                return self._advance(stop), ""
            yield None

    def _start_of_partial(self, markers: tuple[str, ...]) -> int:
        """Where the end of the buffer may be the beginning of a marker."""
        first = len(self._text)
        for marker in markers:
            start = max(self._at, len(self._text) - len(marker) + 1)
            while (start := self._text.find(marker[0], start, first)) >= 0:
                if marker.startswith(self._text[start:]):
                    first = start
                    break
                start += 1
        return first

    # --- copying ---

    def copy_rest(self, event: Callable[[str], Event]) -> Steps[None]:
        """Everything to the end, at once as it comes."""
        while text := (yield from self.piece(()))[0]:
            yield event(text)

    def copy_until(
        self, markers: tuple[str, ...], event: Callable[[str], Event], lead: str = "", after_markup: bool = False
    ) -> Steps[tuple[str, str]]:
        """`lead` and the text up to a marker as events: (white space before the marker, the marker), or ("", "").

        White space beside markup belongs to the markup: what stands before the marker is handed back, not sent, and
        with `after_markup` white space at the start is left out.
        """
        text, marker, skip = lead, "", after_markup
        held: list[str] = []
        while True:
            body = text.rstrip(WHITE)
            if body:
                if skip:
                    held.clear()
                    text, body, skip = text.lstrip(WHITE), body.lstrip(WHITE), False
                yield event("".join(held) + body)
                held.clear()
            held.append(text[len(body) :])
            if marker:
                return "".join(held), marker
            text, marker = yield from self.piece(markers)
            if not text and not marker:
                rest = "".join(held)
                if rest and not skip:
                    yield event(rest)
                return "", ""


class Machine:
    """Drives a parser that is written as a generator: text in, events out."""

    def __init__(self) -> None:
        self.stream = TextStream()
        self._steps = self.run()

    def run(self) -> Steps[None]:
        """Reads `stream` to its end."""
        raise NotImplementedError

    def push(self, text: str) -> list[Event]:
        self.stream.push(text)
        return self._events()

    def finish(self) -> list[Event]:
        self.stream.end()
        return self._events()

    def _events(self) -> list[Event]:
        events = []
        for event in self._steps:  # goes on where it stopped
            if event is None:
                assert not self.stream.ended
                break
            events.append(event)
        return events


@lru_cache(maxsize=256)
def _any_of(markers: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, markers)))
