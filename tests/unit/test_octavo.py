from __future__ import annotations

import re
from pathlib import Path

import pytest

import octavo

ROOT = Path(__file__).resolve().parents[2]


def test_the_build_reads_the_version_the_package_has() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]["metadata"]["version"]
    match = re.search(settings["regex"], (ROOT / settings["input"]).read_text())
    assert match is not None and match["value"] == octavo.__version__


def test_public_names_are_those_of_their_modules() -> None:
    from octavo.core.outputs import RequestOutput

    assert octavo.RequestOutput is RequestOutput
    assert {"LLM", "AsyncEngine", "SamplingParams", "RequestOutput"} <= set(dir(octavo))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = octavo.Nonsense
