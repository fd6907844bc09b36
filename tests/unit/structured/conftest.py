"""No processes here: tests/structured has what compiles in one."""

from __future__ import annotations

import pytest

from octavo.structured import compile, llguidance


@pytest.fixture(autouse=True)
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (compile, llguidance):
        monkeypatch.setattr(module, "is_plain", lambda form: True)
