from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from octavo.telemetry import log
from octavo.telemetry.log import progress_bar, setup_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def own_logger() -> Iterator[logging.Logger]:
    """The octavo logger, put back as it was."""
    logger = logging.getLogger("octavo")
    before = logger.level, logger.propagate, list(logger.handlers)
    logger.handlers = []
    yield logger
    logger.level, logger.propagate, logger.handlers = before


def test_logs_go_to_stderr_once(own_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    setup_logging()
    logging.getLogger("octavo.somewhere").info("hello %d", 7)
    logging.getLogger("octavo.somewhere").debug("unseen")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("hello 7") == 1 and "unseen" not in captured.err


def test_the_level_can_change(own_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    setup_logging(logging.DEBUG)
    logging.getLogger("octavo").debug("seen")
    assert capsys.readouterr().err.count("seen") == 1


def test_items_pass_through_and_a_line_says_when_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(["a", "b", "c"], description="Loading", unit="files")) == ["a", "b", "c"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Loading: 3 files in ") and captured.err.count("\n") == 1


def test_a_line_tells_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(total=3 * 2**20, description="Reading", unit="B") as bar:
        bar.advance(2**20)
    assert capsys.readouterr().err.startswith("Reading: 1 MiB of 3 MiB in ")


def test_long_work_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(log.time, "monotonic", lambda: float(next(clock)))
    bar = progress_bar(total=100, description="Working", unit="steps")
    for _ in range(4):
        bar.advance(10)
    assert 1 <= capsys.readouterr().err.count("of 100 steps") < 4


def test_it_can_be_turned_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar([1], description="Loading", enabled=False)) == [1]
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_bar_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar(total=4, description="Moving", unit="files") as bar:
        bar.advance(4)
        bar.note("12 tokens/s")
    assert "Moving: 100%" in terminal.getvalue() and "12 tokens/s" in terminal.getvalue()
