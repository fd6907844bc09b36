"""Logs and progress, both on stderr, so that stdout holds results alone."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TextIO

_PLAIN_INTERVAL = 10.0  # seconds between lines of a progress bar where stderr is no terminal


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the moment, and around progress bars."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        bars = sys.modules.get("tqdm")
        try:
            if bars is None:
                print(self.format(record), file=sys.stderr, flush=True)
            else:
                bars.tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


def setup_logging(level: int | str = logging.INFO) -> None:
    """Sends octavo's log to stderr. Programs that bring their own logging do not call it; calling it again only
    changes the level."""
    logger = logging.getLogger("octavo")
    logger.setLevel(level)
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False


class Progress:
    """A progress bar. On a terminal it moves; elsewhere a line says when it is done, and every ten seconds how far."""

    def __init__(self, total: float | None, description: str, unit: str, *, enabled: bool = True) -> None:
        self.total, self.description, self.unit, self.count = total, description, unit, 0.0
        self._started = self._last_line = time.monotonic()
        self._bar: Any = None
        self._plain = enabled
        if enabled and sys.stderr.isatty():
            self._plain = False
            from tqdm import tqdm  # most starts need none

            self._bar = tqdm(
                total=total,
                desc=description,
                unit=unit,
                unit_scale=unit == "B",
                unit_divisor=1024 if unit == "B" else 1000,
                file=sys.stderr,
                dynamic_ncols=True,
            )

    def advance(self, amount: float = 1) -> None:
        self.count += amount
        if self._bar is not None:
            self._bar.update(amount)
        elif self._plain and time.monotonic() - self._last_line >= _PLAIN_INTERVAL:
            self._last_line = time.monotonic()
            self._line("")

    def note(self, text: str) -> None:
        """A few words behind the bar, such as tokens a second."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._plain:
            self._line(f" in {time.monotonic() - self._started:.1f} s")
        self._bar, self._plain = None, False

    def _line(self, end: str) -> None:
        done = _amount(self.count, self.unit)
        whole = f" of {_amount(self.total, self.unit)}" if self.total is not None and self.count != self.total else ""
        print(f"{self.description}: {done}{whole}{end}", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    total: float | None = None,
    description: str,
    unit: str = "it",
    enabled: bool = True,
) -> Any:
    """With an iterable: the same items, counted as they are taken. Without: a `Progress` to advance and close."""
    if iterable is None:
        return Progress(total, description, unit, enabled=enabled)
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    return _counted(iterable, Progress(total, description, unit, enabled=enabled))


def _counted(iterable: Iterable[Any], progress: Progress) -> Iterator[Any]:
    with progress:
        for item in iterable:
            yield item
            progress.advance()


def _amount(count: float, unit: str) -> str:
    if unit != "B":
        return f"{count:,.0f} {unit}"
    for step in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {step}"
        count /= 1024
    return f"{count:,.1f} GiB"
