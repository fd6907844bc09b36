"""A machine without a C++ compiler: the build succeeds, and octavo says what it lacks."""

from __future__ import annotations

import argparse
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import octavo
from octavo.cli import doctor
from octavo.config.env import child_environment
from octavo.ops import dispatch

SOURCES = Path(__file__).parents[3] / "csrc" / "cpu"


@pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no CMake")
def test_the_build_leaves_the_kernels_out_and_succeeds(tmp_path: Path) -> None:
    absent = str(tmp_path / "no-such-compiler")
    run = subprocess.run(
        ["cmake", "-S", str(SOURCES), "-B", str(tmp_path / "build"), "-Wno-dev"],
        env=child_environment(CXX=absent, CC=absent),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert "no C++ compiler; CPU kernels are left out" in run.stdout


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if they had not been compiled."""
    monkeypatch.setitem(sys.modules, "octavo._cpu", None)
    monkeypatch.delattr(octavo, "_cpu", raising=False)
    for name in [name for name in sys.modules if name.startswith("octavo.ops.cpu")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("_loaded", "_absent"):
        table = {key: value for key, value in getattr(dispatch, name).items() if key != "cpu"}
        monkeypatch.setattr(dispatch, name, table)
    monkeypatch.setattr(dispatch, "_told", set())
    monkeypatch.setattr(dispatch, "_chosen", {})
    monkeypatch.setattr(dispatch, "bound", type(dispatch.bound)(**vars(dispatch.bound)))


@pytest.mark.usefixtures("no_kernels")
def test_what_is_missing_is_said_once_with_its_cost(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert set(dispatch.use(("cpu", "torch")).values()) == {"torch"}
    (record,) = caplog.records
    assert "a token takes about 3 times as long" in record.getMessage() and "pip install ." in record.getMessage()
    with pytest.raises(ImportError, match="not compiled"):
        importlib.import_module("octavo.ops.cpu")


@pytest.mark.usefixtures("no_kernels")
def test_the_doctor_says_it_once(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main(argparse.Namespace(json=False))
    text = capsys.readouterr().out
    (line,) = (line for line in text.splitlines() if "not compiled" in line)
    assert line.startswith("  cpu kernels: octavo's CPU kernels are not compiled")
    assert line.count("compute") == 1 and "ImportError" not in line
    assert "of torch's" in next(line for line in text.splitlines() if line.split()[0] == "threads")
