from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import pytest

from octavo.errors import ConfigurationError
from octavo.platforms import cpu, cuda, detect
from octavo.platforms.platform import Platform


class Entry:
    """An entry point of another package."""

    def __init__(self, name: str, load: Callable[[], Any]) -> None:
        self.name, self.load = name, load


def install(monkeypatch: pytest.MonkeyPatch, *entries: Entry) -> None:
    def entry_points(*, group: str) -> tuple[Entry, ...]:
        return entries if group == "octavo.platforms" else ()

    monkeypatch.setattr(detect, "entry_points", entry_points)


def strange() -> Platform:
    return dataclasses.replace(cpu.platform(), name="strange")


def test_the_cpu_is_always_there(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    platform = detect.detect()
    assert platform.name == "cpu" and platform.op_order[-1] == "torch" and platform.num_threads >= 1
    free, total = platform.memory_info()
    assert 0 < free <= total


def test_a_platform_of_another_package_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Entry("strange", lambda: strange))
    assert detect.detect().name == "strange"
    assert detect.detect("cpu").name == "cpu"


def test_one_whose_device_is_absent_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Entry("strange", lambda: lambda: None))
    assert detect.detect().name == "cpu"
    with pytest.raises(ConfigurationError, match="this machine has no strange device"):
        detect.detect("strange")


def test_one_that_is_broken_is_named_and_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load() -> Any:
        raise ImportError("no such library")

    install(monkeypatch, Entry("strange", load))
    monkeypatch.setattr(logging.getLogger("octavo"), "propagate", True)
    assert detect.detect().name == "cpu"
    assert "platform strange is passed over: ImportError: no such library" in caplog.text


def test_an_unknown_name_lists_the_known(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with pytest.raises(ConfigurationError, match="there is no platform gpu; known are cuda, cpu"):
        detect.detect("gpu")


def test_facts_are_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = cpu.platform().facts()
    assert facts.name == "cpu" and facts.shares_memory and not facts.is_asynchronous
    assert set(facts.fast_dtypes) <= set(facts.dtypes) and "float32" in facts.fast_dtypes


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_invariant_kernels_come_before_the_others(name: str) -> None:
    """On a platform without them, the wish is refused."""
    found = dataclasses.replace(cpu.platform(), invariant={"cpu": cpu, "cuda": cuda}[name].INVARIANT)
    assert found.facts().has_invariant_kernels
    kernels = found.kernels(batch_invariant=True)
    assert "invariant" in kernels.op_order[0] and len(kernels.attention_order(None)) == 1
    assert found.kernels(batch_invariant=False).op_order == ("cpu", "torch")
    bare = dataclasses.replace(found, invariant=None)
    assert not bare.facts().has_invariant_kernels
    with pytest.raises(ConfigurationError, match="batch_invariant: there are no such kernels for cpu"):
        bare.kernels(batch_invariant=True)
