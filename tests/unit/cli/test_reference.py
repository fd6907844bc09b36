from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from octavo.cli import reference
from octavo.config.env import VARIABLES
from octavo.config.options import option_rows

DIRECTORY = Path(__file__).resolve().parents[3] / "docs" / "reference"


@pytest.mark.parametrize("name", list(reference.PAGES))
def test_the_page_is_current(name: str) -> None:
    text = (DIRECTORY / name).read_text(encoding="utf-8")
    assert text == reference.PAGES[name](), "run scripts/gendocs"


def test_every_option_and_variable_has_a_line() -> None:
    options, environment = reference.options_page(), reference.environment_page()
    assert all(f"| `{name}` |" in options for name in option_rows())
    assert all(f"| `{variable.name}` |" in environment for variable in VARIABLES)


def test_subcommands_of_a_command_have_their_own_tables() -> None:
    parser = argparse.ArgumentParser()
    inner = parser.add_subparsers().add_parser("latency", help="How long one takes.")
    inner.add_argument("--count", metavar="N", help="How many | how often.")
    text = "\n".join(reference._arguments(parser, "octavo bench"))
    assert "### octavo bench latency\n\nHow long one takes." in text
    assert "| `--count N` | How many \\| how often. |" in text
