"""Stop strings in a stream of text: found across token borders, and kept back while they could still become one."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches one completion.

    `_tail` is the longest end of the text so far that is a beginning of a stop string (never a whole one). A match
    that completes later starts inside it, so this is all there is to search, and all there is to keep back.
    The match that completes first wins, and of those that complete together the one that starts first: how the text
    is cut into tokens makes no difference.
    """

    __slots__ = ("_include", "_stops", "_tail")

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        assert all(stops)
        self._stops, self._include, self._tail = tuple(stops), include, ""

    def push(self, text: str, may_stop: bool = True) -> tuple[str, str | None]:
        """(what may be shown, the stop string that was completed). After a match there is no further call."""
        held = self._tail + text
        match = self._find(held) if may_stop and text else None
        if match is not None:
            start, stop = match
            if self._include:
                return held[len(self._tail) : start + len(stop)], stop
            return held[:start], stop
        shown_before = len(self._tail) if self._include else 0
        keep = self._start_of_tail(held)
        self._tail = held[keep:]
        return (held[shown_before:] if self._include else held[:keep]), None

    def flush(self) -> str:
        """What was kept back, once there is no more text."""
        rest = "" if self._include else self._tail
        self._tail = ""
        return rest

    def _find(self, held: str) -> tuple[int, str] | None:
        """The first stop string that completes in what is new."""
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = held.find(stop, max(0, len(self._tail) - len(stop) + 1))
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return None if best is None else best[1:]

    def _start_of_tail(self, held: str) -> int:
        best = len(held)
        for stop in self._stops:
            start = held.find(stop[0], max(0, len(held) - len(stop) + 1), best)
            while start >= 0:
                if stop.startswith(held[start:]):
                    best = start
                    break
                start = held.find(stop[0], start + 1, best)
        return best
