"""The shape of the tree: names that must not appear, and the one place that reads the environment."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "octavo").rglob("*.py"))
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "base"}


def environment_reads(source: str) -> list[int]:
    """Lines that touch the process environment, under whatever name it was imported."""
    lines = []
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in names and ast.unparse(node.value) in ("os", "posix"):
            lines.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "posix"):
            lines += [node.lineno for alias in node.names if alias.name in names]
    return lines


def test_the_check_sees_every_way_to_read_the_environment() -> None:
    source = "import os\nos.environ['A']\nos.getenv('B')\nfrom os import environ as e, path\n"
    assert sorted(environment_reads(source)) == [2, 3, 4]


def test_only_env_reads_the_environment() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        if path != ROOT / "octavo/config/env.py"
        for line in environment_reads(path.read_text(encoding="utf-8"))
    }
    assert not found, f"only octavo/config/env.py reads the environment, not {sorted(found)}"


def test_no_module_is_called_what_anything_could_be_called() -> None:
    found = [path for path in SOURCES if {path.stem, *path.relative_to(ROOT).parts[:-1]} & FORBIDDEN_NAMES]
    assert not found, f"name these for what they hold: {found}"


def test_every_module_has_a_docstring() -> None:
    found = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if (text := path.read_text(encoding="utf-8")).strip() and ast.get_docstring(ast.parse(text)) is None
    ]
    assert not found, f"one to three lines on what is here and what is not: {found}"


def test_every_package_has_an_init() -> None:
    found = {path.parent for path in SOURCES if not (path.parent / "__init__.py").exists()}
    assert not found


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_links_of_the_front_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    missing = [target for target in targets if target and not (ROOT / target).exists()]
    assert targets and not missing, f"{page} links to {missing}"


@pytest.mark.parametrize("package", ["octavo", "octavo.core.facts", "octavo.config.resolve", "octavo.platforms.detect"])
def test_light_packages_import_without_torch_or_numpy(package: str) -> None:
    code = f"import sys, {package}; print(sorted({{'torch', 'numpy', 'transformers'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
