from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from octavo.errors import ConfigurationError
from octavo.ops import dispatch
from octavo.ops.norm import rms_norm

MODULES = ("activation", "attention", "batch", "cache", "linear", "norm", "rope", "sampling")


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("_packages", "_loaded", "_absent"):
        monkeypatch.setattr(dispatch, name, dict(getattr(dispatch, name)))
    before = dispatch.chosen()
    yield
    monkeypatch.undo()
    dispatch.use(tuple(dict.fromkeys(before.values())))
    assert dispatch.chosen() == before


def made_up(monkeypatch: pytest.MonkeyPatch, name: str, **ops: object) -> None:
    module = ModuleType(f"made_up_{name}")
    module.OPS = ops  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    dispatch.register(name, module.__name__)


def test_the_first_implementation_that_has_an_op_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, "fast", rms_norm=lambda x, weight, eps, weight_offset: x + eps)
    chosen = dispatch.use(("fast",))
    assert chosen["rms_norm"] == "fast"
    assert chosen["add_rms_norm"] == "torch"
    assert rms_norm(torch.ones(2), torch.ones(2), 5.0).tolist() == [6.0, 6.0]
    present = dispatch.present()["rms_norm"]
    assert (present[0], present[-1]) == ("torch", "fast")
    dispatch.use(("torch", "fast"))
    assert dispatch.chosen()["rms_norm"] == "torch"


def test_what_cannot_be_imported_is_recorded_and_said(caplog: pytest.LogCaptureFixture) -> None:
    dispatch.register("broken", "octavo.ops.no_such_package")
    with caplog.at_level(logging.WARNING):
        assert set(dispatch.use(("broken", "torch")).values()) == {"torch"}
    assert "no_such_package" in dispatch.absent()["broken"]
    assert "no_such_package" in caplog.text


def test_an_op_without_a_specification_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, "odd", rms_norm_typo=lambda x: x)
    with pytest.raises(ConfigurationError, match="rms_norm_typo"):
        dispatch.use(("odd",))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'metal' is unknown"):
        dispatch.use(("metal",))
    with pytest.raises(ConfigurationError, match="no implementation"):
        dispatch.implementation_of("no_such_op", "torch")


def test_every_public_op_has_a_specification_of_the_same_parameters() -> None:
    for module in MODULES:
        public = importlib.import_module(f"octavo.ops.{module}")
        for name, function in inspect.getmembers(public, inspect.isfunction):
            if function.__module__ != public.__name__:
                continue  # imported
            specification = dispatch.implementation_of(name, "torch")
            assert inspect.signature(function) == inspect.signature(specification), name
            assert function.__doc__, name
