"""Every test of the server reads outputs with the made-up syntax of `scripted_server`."""

from __future__ import annotations

import pytest

from octavo.server import prompts, state
from tests.unit.server.scripted_server import TaggedParser


@pytest.fixture(autouse=True)
def tagged_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "prompt_ends_in_reasoning", lambda name, text: text.rstrip().endswith("<think>"))
    monkeypatch.setattr(
        state, "make_output_parser", lambda tool, reasoning, tokenizer, tools, begun: TaggedParser(begun)
    )
