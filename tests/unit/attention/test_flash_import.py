"""FlashAttention-4 is imported from packages that are made up."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.attention import flash_import

Files = dict[str, str]
CUTE = "import quack.copies\nfrom quack import copies\ndef flash_attn_varlen_func():\n    return copies.VALUE\n"
WORKING: Files = {
    "quack/__init__.py": "import quack.dsl\nWHOLE = True\n",
    "quack/dsl.py": "IS_PATCHED = True\n",
    "quack/copies.py": "import sys\nassert sys.modules['quack.dsl'].IS_PATCHED\nVALUE = 7\n",
    "flash_attn/cute/__init__.py": CUTE,
}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    monkeypatch.setenv("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(tmp_path))

    def write(files: Files) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    yield write
    for name in list(sys.modules):
        if name.split(".")[0] in ("quack", "flash_attn"):
            del sys.modules[name]


def test_the_package_beside_it_is_not_executed(install) -> None:
    install(WORKING)
    assert flash_import.why_absent() is None
    assert flash_import.import_flash()() == 7
    assert "quack" not in sys.modules  # so that others get all of it
    from quack import WHOLE, copies  # type: ignore[import-not-found]

    assert WHOLE and copies.VALUE == 7


def test_where_that_does_not_work_all_is_executed(install) -> None:
    install(
        {**WORKING, "quack/__init__.py": "import quack.dsl\nVALUE = 8\n", "quack/copies.py": "from quack import VALUE"}
    )
    assert flash_import.import_flash()() == 8
    assert sys.modules["quack"].VALUE == 8


def test_it_is_imported_beside_and_once(install) -> None:
    install(WORKING)
    beside = flash_import.FlashImport()
    beside.start()
    thread = beside._thread
    beside.start()
    assert beside._thread is thread
    function = beside.function()
    assert function is not None and function() == 7 and beside.function() is function


def test_what_cannot_be_imported_is_said_once(install, caplog: pytest.LogCaptureFixture) -> None:
    install({**WORKING, "flash_attn/cute/__init__.py": "raise RuntimeError('no such driver')\n"})
    beside = flash_import.FlashImport()
    assert beside.function() is None and beside.function() is None
    assert caplog.text.count("FlashAttention-4 cannot be imported: RuntimeError: no such driver") == 1


def test_it_is_not_installed(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, flash_import.PACKAGE, raising=False)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    monkeypatch.setattr(sys, "path", [])  # of a machine that may have it
    assert "not installed" in str(flash_import.why_absent())


def test_an_older_package_of_that_name_is_another(install) -> None:
    install({"flash_attn/__init__.py": "raise AssertionError('imported')\n"})
    assert "not installed" in str(flash_import.why_absent())
