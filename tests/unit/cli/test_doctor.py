from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import pytest

from octavo.cli import doctor
from octavo.platforms import cpu


@pytest.fixture
def quiet_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    directory = tmp_path / "cache"
    monkeypatch.setattr(doctor, "cache_directory", lambda: directory)
    return directory


def test_the_report_tells_what_is_here(quiet_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(argparse.Namespace(json=False)) == 0
    text = capsys.readouterr().out
    for section in ("octavo", "packages", "device", "kernels", "memory", "cache directory", "missing"):
        assert f"\n{section}\n" in f"\n{text}"
    assert str(quiet_cache) in text and not quiet_cache.exists()


def test_the_json_has_the_same_facts(quiet_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(argparse.Namespace(json=True)) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["is_usable"] and report["sections"]["device"]["platform"] == "cpu"
    assert report["sections"]["kernels"]["torch"].split()[1] == "ops:"


def test_a_missing_package_makes_it_unusable_and_says_so(
    quiet_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", ("torch", "no-such-package"))
    assert doctor.main(argparse.Namespace(json=False)) == 1
    assert "package no-such-package: octavo cannot run without it" in capsys.readouterr().out


def test_required_packages_are_those_the_project_asks_for() -> None:
    import re
    import tomllib

    root = Path(__file__).resolve().parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert set(doctor.REQUIRED) == {re.split(r"[<>=\[]", requirement)[0] for requirement in project["dependencies"]}


def test_emulated_bfloat16_is_a_cost(quiet_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = dataclasses.replace(cpu.platform(), fast_dtypes=("float32",))
    monkeypatch.setattr(doctor, "detect", lambda: old)
    assert any("bfloat16" in what and "twice the memory" in cost for what, cost in doctor.examine().missing)


def test_limits_of_the_control_group_are_shown(quiet_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "memory_limit", lambda *_: 3 * 2**30)
    monkeypatch.setattr(cpu, "cpu_quota", lambda *_: 0.5)
    report = doctor.examine()
    assert report.sections["memory"]["limit"] == "3.0 GiB, set by the control group"
    assert "a quota of 0.5 CPUs" in report.sections["device"]["cores to use"]
    assert any("a whole CPU" in what for what, _ in report.missing)


def test_too_little_disk_is_a_cost(quiet_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = doctor.shutil.disk_usage(".")._replace(free=1 << 20)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert any(what == "disk space" and "1 MiB" in cost for what, cost in doctor.examine().missing)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "2 KiB"), (3 << 30, "3.0 GiB"), (5 << 40, "5120.0 GiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert doctor.size(count) == text
