"""When a core that says nothing counts as one that hangs."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.config.env import read_seconds
from octavo.core.messages import Heartbeat
from octavo.engine import launch
from octavo.engine.launch import STEP_TIMEOUT, _Pulse
from octavo.errors import ConfigurationError


class Core:
    """A channel to a core that answers, or does not; and the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.asked = 1000.0, list[Heartbeat]()
        monkeypatch.setattr(launch.time, "monotonic", lambda: self.now)
        self.pulse = _Pulse(self)  # type: ignore[arg-type]

    def send(self, message: Any) -> bool:
        self.asked.append(message)
        return True

    def after(self, seconds: float, limit: float, *, answers: bool) -> bool:
        """Whether it counts as hanging at some time of these seconds."""
        for _ in range(int(seconds / 0.5)):
            self.now += 0.5
            if self.pulse.has_stopped(limit):
                return True
            if answers and self.asked:
                self.pulse.answered(self.asked[-1])
        return False


def test_who_answers_lives_and_is_asked_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    core = Core(monkeypatch)
    assert not core.after(3600, 300.0, answers=True)
    assert 200 < len(core.asked) < 250 and len(set(core.asked)) == len(core.asked)


def test_who_does_not_is_given_up_after_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    core = Core(monkeypatch)
    assert not core.after(290, 300.0, answers=False) and len(core.asked) == 1
    core.pulse.answered(Heartbeat(core.asked[0].number - 1))  # to an older question
    assert core.after(40, 300.0, answers=False) and core.pulse.is_dead
    assert not core.after(10, 300.0, answers=False), "once is enough"


def test_a_long_step_within_the_limit_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    core = Core(monkeypatch)
    for _ in range(5):
        assert not core.after(250, 300.0, answers=False)
        core.pulse.answered(core.asked[-1])


def test_time_that_nobody_saw_does_not_count_and_no_limit_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    core = Core(monkeypatch)
    assert not core.after(20, 300.0, answers=False) and core.asked
    core.now += 10_000  # suspended
    assert not core.after(200, 300.0, answers=False)
    assert not Core(monkeypatch).after(10_000, 0.0, answers=False)


def test_the_limit_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_seconds(STEP_TIMEOUT) == 300.0
    monkeypatch.setenv(STEP_TIMEOUT, "0.5")
    assert read_seconds(STEP_TIMEOUT) == 0.5
    for text in ("soon", "-1", "inf", "nan"):
        monkeypatch.setenv(STEP_TIMEOUT, text)
        with pytest.raises(ConfigurationError, match=f"{STEP_TIMEOUT} must be a number of seconds"):
            read_seconds(STEP_TIMEOUT)
