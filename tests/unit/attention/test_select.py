from __future__ import annotations

import logging
import sys
from dataclasses import replace
from types import ModuleType

import pytest

from octavo.attention import select
from octavo.attention.backend import AttentionQuery
from octavo.attention.select import AttentionSelector
from octavo.errors import ConfigurationError

QUERY = AttentionQuery(head_dim=8, num_heads=2, num_kv_heads=1, block_size=16, dtype="float32", cache_dtype="float32")


class Picky:
    name = "picky"

    def why_not(self, query: AttentionQuery) -> str | None:
        return None if query.head_dim == 64 else f"head_dim {query.head_dim} is not 64"


@pytest.fixture(autouse=True)
def backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_known", dict(select._known))
    module = ModuleType("picky_backend")
    module.Picky = Picky  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    select.register("picky", "picky_backend:Picky")
    select.register("absent", "octavo.attention.no_such_module:Nothing")


def order(*names: str) -> AttentionSelector:
    return AttentionSelector(lambda query: names)


def test_takes_the_first_that_can_and_keeps_the_reasons(caplog: pytest.LogCaptureFixture) -> None:
    selector = order("absent", "picky", "torch_sdpa")
    with caplog.at_level(logging.INFO):
        assert selector(QUERY).name == "torch_sdpa"
    rejected = selector.choices[QUERY].rejected
    assert list(rejected) == ["absent", "picky"]
    assert "no_such_module" in rejected["absent"]
    assert rejected["picky"] == "head_dim 8 is not 64"
    assert "torch_sdpa for 2 heads of 8" in caplog.text
    assert "head_dim 8 is not 64" in caplog.text
    assert selector(replace(QUERY, head_dim=64)).name == "picky"


def test_one_instance_serves_all_layers() -> None:
    selector = order("torch_sdpa")
    assert selector(QUERY) is selector(replace(QUERY, window=5))


def test_a_wish_that_cannot_serve_is_an_error_with_its_reason() -> None:
    with pytest.raises(ConfigurationError, match=r"attention_backend 'picky' cannot serve.*head_dim 8 is not 64"):
        AttentionSelector(lambda query: ("torch_sdpa",), "picky")(QUERY)
    with pytest.raises(ConfigurationError, match=r"'flash' is unknown; known: absent, .*picky, torch_sdpa"):
        AttentionSelector(lambda query: ("torch_sdpa",), "flash")(QUERY)


def test_a_wish_is_tried_whatever_the_order() -> None:
    assert AttentionSelector(lambda query: ("picky",), "torch_sdpa")(QUERY).name == "torch_sdpa"


def test_no_backend_at_all_lists_every_reason() -> None:
    with pytest.raises(ConfigurationError, match=r"picky: head_dim 8.*torch_sdpa: no attention sinks"):
        order("picky", "torch_sdpa")(replace(QUERY, sinks=True))
