"""Packed weights on disk: found by later starts, and only by those that they are for."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize

from octavo.config.checkpoint import find_checkpoint
from octavo.config.env import packed_weights_limit
from octavo.config.options import make_options
from octavo.config.read_ahead import files_to_read, packed_directory, read_ahead
from octavo.engine.configure import configure
from octavo.errors import ConfigurationError
from octavo.layers.stack import CausalLM
from octavo.loader.packed_files import PackedFiles
from octavo.ops import dispatch
from octavo.worker.assemble import build_model
from tests.tiny_gguf import Tensor, sizes, write_gguf

if not dispatch.load("cpu"):
    pytest.skip("octavo's CPU kernels are not compiled", allow_module_level=True)

from octavo.ops.cpu import packing

HIDDEN, VOCABULARY = 64, 96
SHAPES = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN // 2, HIDDEN),
    "attn_v": (HIDDEN // 2, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (2 * HIDDEN, HIDDEN),
    "ffn_up": (2 * HIDDEN, HIDDEN),
    "ffn_down": (HIDDEN, 2 * HIDDEN),
}


@pytest.fixture
def model_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OCTAVO_PACKED_WEIGHTS_GIB", "1")
    return write(tmp_path / "tiny.gguf", 0)


def write(path: Path, seed: int) -> Path:
    generator = np.random.default_rng(seed)

    def blocks(shape: tuple[int, int]) -> Tensor:
        return quantize(generator.standard_normal(shape).astype(np.float32), GGMLQuantizationType.Q4_1), "Q4_1"

    tensors: dict[str, Tensor] = {
        "token_embd.weight": blocks((VOCABULARY, HIDDEN)),
        "output_norm.weight": generator.standard_normal(HIDDEN).astype(np.float32),
    }
    for layer in range(2):
        tensors |= {f"blk.{layer}.{name}.weight": blocks(shape) for name, shape in SHAPES.items()}
        for norm in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{norm}.weight"] = generator.standard_normal(HIDDEN).astype(np.float32)
    return write_gguf(path, "llama", sizes("llama", vocab_size=VOCABULARY), tensors)


def built(path: Path, **options: str) -> CausalLM:
    configured = configure(make_options(model=str(path), skip_tokenizer_init=True, **options))
    model = build_model(configured.config, configured.platform, torch.device("cpu"))
    for thread in threading.enumerate():
        if thread.name == "octavo-packed-weights":
            thread.join()
    return model


def kept() -> list[Path]:
    return sorted(packed_directory().glob("*.packed"))


def values(model: CausalLM) -> dict[str, torch.Tensor]:
    return {name: parameter.data.clone() for name, parameter in model.named_parameters()}


def same(one: CausalLM, other: CausalLM) -> bool:
    mine, theirs = values(one), values(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture
def no_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("something is packed")

    for name in ("pack_blocks", "pack_expanded", "pack_numbers"):
        monkeypatch.setattr(packing, name, refuse)


@pytest.mark.parametrize("options", [{}, {"quantization": "none", "dtype": "bfloat16"}])
def test_a_second_start_packs_nothing_and_has_the_same(
    model_path: Path, options: dict[str, str], request: pytest.FixtureRequest
) -> None:
    first = built(model_path, **options)
    assert len(kept()) == 1
    request.getfixturevalue("no_packing")
    second = built(model_path, **options)
    assert same(first, second) and len(kept()) == 1
    assert torch.equal(first.logits(torch.ones(1, HIDDEN).bfloat16()), second.logits(torch.ones(1, HIDDEN).bfloat16()))
    parameters = dict(second.named_parameters())
    weight = parameters["model.layers.0.attn.qkv.weight"]
    with open("/proc/self/maps", encoding="utf-8") as maps:
        ranges = [line.split()[0].split("-") for line in maps if line.rstrip().endswith(str(kept()[0]))]
    assert any(int(low, 16) <= weight.data_ptr() < int(high, 16) for low, high in ranges), "pages of the file"


def test_another_checkpoint_or_dtype_is_another_file(model_path: Path) -> None:
    before = built(model_path)
    built(model_path, quantization="none", dtype="bfloat16")
    assert len(kept()) == 2
    write(model_path, 1)  # of the same size
    changed = built(model_path)
    assert len(kept()) == 3 and not same(before, changed)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        ("payload", "is damaged"),
        ("description", "description is damaged"),
        ("end", "cut off"),
        ("all", "cut off"),
        ("magic", "no such file"),
    ],
)
def test_a_damaged_file_is_told_and_made_anew(
    model_path: Path, harm: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = built(model_path)
    (path,) = kept()
    content = bytearray(path.read_bytes())
    if harm == "payload":
        content[-3000] ^= 4
    elif harm == "description":
        content[60] ^= 1
    elif harm == "magic":
        content[0] ^= 1
    else:
        del content[20 if harm == "all" else -1 :]
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "octavo"):
        second = built(model_path)
    assert why in caplog.text and str(path) in caplog.text
    assert same(first, second)
    caplog.clear()
    assert same(first, built(model_path)) and not caplog.records


def test_a_file_with_other_weights_is_not_taken(model_path: Path, tmp_path: Path) -> None:
    built(model_path)
    (path,) = kept()
    parameters = dict(built(model_path).named_parameters())
    del parameters["model.layers.1.mlp.down.weight"]
    files = PackedFiles(packed_directory(), 1 << 30)
    assert files.take(path.stem, parameters) == 0 and not path.exists()
    assert files.take("none-of-that-name", parameters) == 0


def test_the_oldest_make_room_and_what_is_too_large_is_not_kept(model_path: Path) -> None:
    model = built(model_path)
    parameters = dict(model.named_parameters())
    (path,) = kept()
    size = path.stat().st_size
    directory = packed_directory()
    half_written, under_way = directory / ".incoming-old", directory / ".incoming-new"
    half_written.touch()
    under_way.touch()
    os.utime(half_written, (0, 0))
    os.utime(path, (1, 1))
    for number in range(3):
        thread = PackedFiles(directory, 3 * size).put(f"number{number}", parameters)
        assert thread is not None
        thread.join()
        os.utime(directory / f"number{number}.packed", (time.time() + number,) * 2)
    assert {one.stem for one in kept()} == {"number0", "number1", "number2"}, "the first was the oldest"
    assert under_way.exists() and not half_written.exists()
    assert PackedFiles(directory, size // 2).put("large", parameters) is None


def test_a_directory_that_cannot_be_written_fails_nothing(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = packed_directory()
    directory.parent.mkdir()
    directory.write_text("a file")
    assert built(model_path) is not None and directory.read_text() == "a file"


def test_it_can_be_turned_off(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_PACKED_WEIGHTS_GIB", "0")
    built(model_path)
    assert not packed_directory().exists()
    monkeypatch.setenv("OCTAVO_PACKED_WEIGHTS_GIB", "0.5")
    assert packed_weights_limit() == 1 << 29
    for text in ("some", "-1", "inf"):
        monkeypatch.setenv("OCTAVO_PACKED_WEIGHTS_GIB", text)
        with pytest.raises(ConfigurationError, match=f"OCTAVO_PACKED_WEIGHTS_GIB must be .* got '{text}'"):
            packed_weights_limit()


def test_what_is_read_ahead_is_what_will_be_used(model_path: Path) -> None:
    checkpoint = find_checkpoint(str(model_path))
    assert files_to_read(checkpoint) == [model_path]
    built(model_path)
    assert files_to_read(checkpoint) == kept()
    built(model_path, quantization="none", dtype="bfloat16")
    assert (
        len(files_to_read(checkpoint)) == 1
        and files_to_read(checkpoint)[0].stat().st_size > kept()[0].stat().st_size / 2
    )
    kept()[0].unlink()
    kept()[0].unlink()
    assert files_to_read(checkpoint) == [model_path]
    thread = read_ahead([model_path], 1 << 30)
    assert thread is not None
    thread.join()
    assert read_ahead([model_path], model_path.stat().st_size) is None, "it would take more than half of what is free"
    assert read_ahead([model_path.with_name("gone")], 1 << 30) is None
