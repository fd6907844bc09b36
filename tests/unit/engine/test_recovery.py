from __future__ import annotations

import pytest

from octavo.engine.recovery import StepLimit


def test_steps_shrink_from_the_size_that_failed_and_grow_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepLimit, "PATIENCE", 2)
    limit = StepLimit(1000)
    assert limit.fail(600) and limit.tokens == 300
    assert limit.fail(900) and limit.tokens == 150  # planned before, and no reason to be bolder
    for _ in range(7):
        limit.passed()
    assert limit.tokens == 150  # twice the patience after each failure: 8 steps
    limit.passed()
    assert limit.tokens == 300
    for _ in range(16):
        limit.passed()
    assert limit.tokens == 1000
    limit.passed()
    assert limit.tokens == 1000


@pytest.mark.parametrize(("most", "tokens", "is_smaller"), [(1000, 17, True), (1000, 16, False), (4, 4, False)])
def test_the_least_step_was_not_too_large(most: int, tokens: int, is_smaller: bool) -> None:
    limit = StepLimit(most)
    assert limit.fail(tokens) is is_smaller
    assert limit.tokens == (16 if is_smaller else most)
