"""Kernels of FlashAttention-4 compiled by processes of their own; a made-up package stands in for it."""

from __future__ import annotations

import importlib
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.attention import flash_children, flash_compile, flash_import
from octavo.attention.flash_compile import FlashCompilers, TensorShape, decode, describe, encode, rebuild
from octavo.config.options import make_options
from octavo.engine import frontend
from octavo.engine.configure import configure
from tests.unit.worker.test_rehearsal import LLAMA

# What it is called with is written to a file beside it.
PACKAGE = """
import json, os, sys, time
from pathlib import Path

def flash_attn_varlen_func(q, k, v, **given):
    (Path(__file__).parent / "called").write_text(json.dumps([str(q.dtype), list(q.shape), given["softmax_scale"]]))
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes children find a package whose function ends with these lines; gives the file that a call leaves."""
    monkeypatch.setattr(flash_children, "LEAST_PROCESSORS", 1)
    monkeypatch.setattr(flash_children, "EARLY", 1)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(lines: str = "pass") -> Path:
        folder = tmp_path / "flash_attn" / "cute"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(PACKAGE + f"    {lines}\n")
        (tmp_path / "quack").mkdir()
        (tmp_path / "quack" / "__init__.py").touch()
        (tmp_path / "quack" / "dsl.py").touch()
        return folder / "called"

    return write


@pytest.fixture
def compilers() -> Iterator[FlashCompilers]:
    made = FlashCompilers(seconds=60.0)
    yield made
    for child in (*made._idle, *made._busy.values()):
        child.end()


def call() -> dict[str, Any]:
    """The keys and values of 50 pages of 4 tokens, 2 heads of 8, as they lie in a cache."""
    cache = torch.ones(50, 3, 2, 4, 2, 8, dtype=torch.bfloat16)[:, 1]
    return {
        "q": torch.ones(7, 4, 8, dtype=torch.bfloat16),
        "k": cache[:, 0],
        "v": cache[:, 1],
        "seqused_k": torch.ones(6, dtype=torch.int32)[3:],
        "softmax_scale": 0.25,
        "window_size": (None, 0),
    }


def test_a_described_call_is_the_same_one_on_zeros_and_on_few_pages() -> None:
    given = call()
    described = describe(given)
    assert decode(encode(described)) == described
    found = rebuild(decode(encode(described)))
    assert list(found) == list(given)
    assert found["softmax_scale"] == 0.25
    assert found["window_size"] == (None, 0)
    for name in ("q", "k", "v", "seqused_k"):
        is_paged = name in ("k", "v")
        like = given[name][: flash_compile.FEW_PAGES] if is_paged else given[name]
        assert found[name].shape == like.shape
        assert found[name].stride() == like.stride()
        assert found[name].dtype == like.dtype
        assert found[name].data_ptr() % 16 == given[name].data_ptr() % 16
        assert not found[name].any()
    assert found["k"].untyped_storage().nbytes() <= 2 * 2 * 50 * 2 * 4 * 2 * 8


def test_a_child_makes_the_call(install, compilers: FlashCompilers) -> None:
    called = install()
    compilers.start()
    compilers.begin("kind", call())
    child = compilers._busy["kind"]
    compilers.begin("kind", call())
    assert compilers._busy["kind"] is child, "once"
    assert compilers.wait("kind")
    assert called.read_text() == '["torch.bfloat16", [7, 4, 8], 0.25]'
    assert child._process.poll() == 0, "its memory is free again"
    assert not compilers.wait("another")


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("raise ValueError('no such tile')", "exit status 1: ValueError: no such tile"),
        ("os._exit(7)", "exit status 7: it said nothing"),
        ("print('tiles', flush=True); time.sleep(60)", "it took more than 0.5 s: tiles"),
    ],
)
def test_a_child_that_fails_is_said_and_is_gone(
    install, compilers: FlashCompilers, caplog: pytest.LogCaptureFixture, lines: str, reason: str
) -> None:
    called = install(lines)
    compilers.start()
    compilers._idle.pop().end()  # so that another one is started for the call
    compilers.begin("kind", call())
    if "0.5 s" in reason:
        wait_until(called.exists)
        time.sleep(0.2)  # until it has said something
        compilers._seconds = 0.5
    assert not compilers.wait("kind")
    assert f"kind was not compiled by a process of its own: {reason}" in caplog.text
    assert compilers._busy["kind"]._process.poll() is not None


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_child_ends_with_its_parent(install, compilers: FlashCompilers) -> None:
    """Idle or in the middle of a call: as soon as nobody holds the other end of its stdin."""
    called = install("time.sleep(60)")
    compilers.start()
    compilers.begin("kind", call())
    for child, status in ((compilers._busy["kind"], 1), (flash_children.Child(), 0)):
        if status:
            wait_until(called.exists)
        child._process.stdin.close()
        assert child._process.wait(60) == status
        child._said.close()
    compilers._busy.clear()


def test_no_child_is_started_where_processors_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_children, "LEAST_PROCESSORS", 1 << 20)
    monkeypatch.setattr(subprocess, "Popen", None)
    compilers = FlashCompilers()
    compilers.start()
    compilers.begin("kind", call())
    assert not compilers.wait("kind")
    compilers.close()


def test_children_start_before_torch_where_nothing_is_compiled_yet(
    install, compilers: FlashCompilers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = install()
    folder = tmp_path / "kernels"
    monkeypatch.setenv("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(folder))
    monkeypatch.setattr(flash_import, "why_absent", lambda: None)
    flash_children.start_early()
    flash_children.start_early()
    (child,) = flash_children._early
    compilers.start()
    assert compilers._idle == [child] and not flash_children._early
    compilers.begin("kind", call())
    assert compilers.wait("kind") and called.exists()
    (folder / "one").mkdir(parents=True)
    (folder / "one" / "kernel.o").touch()
    flash_children.start_early()
    assert not flash_children._early


def test_what_a_platform_names_begins_before_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    class TorchIsNext(Exception):
        pass

    def find(name: str) -> Any:
        if name == "octavo.engine.assemble":
            raise TorchIsNext
        return importlib.import_module(name)

    monkeypatch.setattr(flash_children, "start_early", lambda: begun.append("flash"))
    monkeypatch.setattr(frontend, "import_module", find)
    configured = configure(make_options(model=LLAMA, load_format="dummy", skip_tokenizer_init=True))
    platform = replace(configured.platform, before_torch="octavo.attention.flash_children:start_early")
    with pytest.raises(TorchIsNext):
        frontend.start_frontend(replace(configured, platform=platform))
    assert begun == ["flash"]


def test_idle_children_are_ended(install, compilers: FlashCompilers) -> None:
    install()
    compilers.start()
    (child,) = compilers._idle
    compilers.start()
    assert compilers._idle == [child]
    compilers.close()
    assert child._process.poll() is not None


def test_what_a_tensor_is_like_takes_no_more_than_it_says() -> None:
    shape = TensorShape.of(torch.zeros(100, 8)[3:5, 2:])
    assert (shape.shape, shape.stride, shape.offset) == ((2, 6), (8, 1), 2)
    assert shape.zeros().untyped_storage().nbytes() == 4 * (2 + 8 + 5 + 1)
