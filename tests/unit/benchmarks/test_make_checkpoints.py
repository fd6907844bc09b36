"""Every form of a model that compare_cpu.py makes has the same numbers, and engines can read it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from benchmarks.make_checkpoints import Models, expand_to_directory, expand_to_gguf, make_all, random_directory
from benchmarks.make_checkpoints import directory_to_gguf as to_gguf
from octavo.config.checkpoint import find_checkpoint
from octavo.loader.files import open_weights
from octavo.tokenization.tokenizer import Tokenizer
from tests.tiny_gguf import sizes, write_gguf

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of Q4_1 blocks with a byte-level tokenizer of a few words."""
    rng = np.random.default_rng(0)

    def blocks(rows: int, columns: int) -> tuple[np.ndarray, str]:
        values = rng.standard_normal((rows, columns)).astype(np.float32)
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1), "Q4_1"

    tensors: dict = {"token_embd.weight": blocks(96, 64), "output_norm.weight": np.ones(64, np.float32)}
    for layer in range(2):
        tensors |= {
            f"blk.{layer}.attn_q.weight": blocks(64, 64),
            f"blk.{layer}.attn_k.weight": blocks(32, 64),
            f"blk.{layer}.attn_norm.weight": rng.standard_normal(64).astype(np.float32),
        }
    tokens = [chr(33 + number) for number in range(94)] + ["Ġ", "Ġa"]
    metadata = sizes("llama", rope__freq_base=10000.0) | {
        "general.file_type": 3,
        "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 96,
        "tokenizer.ggml.merges": ["Ġ a"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }
    return write_gguf(tmp_path_factory.mktemp("source") / "model.gguf", "llama", metadata, tensors)


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    with open_weights(find_checkpoint(str(path))) as weights:
        return {entry.name: entry.read().float().clone() for entry in weights}


def test_both_forms_of_bf16_hold_the_rounded_numbers(source: Path, tmp_path: Path) -> None:
    expand_to_directory(source, tmp_path / "made")
    expand_to_gguf(source, tmp_path / "made.gguf")
    original, directory, file = (tensors_of(path) for path in (source, tmp_path / "made", tmp_path / "made.gguf"))
    assert original.keys() == directory.keys() == file.keys() and len(original) == 8
    for name, values in original.items():
        rounded = values.to(torch.bfloat16).float()
        assert torch.equal(directory[name], rounded), name
        # llama.cpp keeps norms in float32
        assert torch.equal(file[name], values if values.dim() == 1 else rounded), name


def test_a_made_directory_is_a_checkpoint_with_its_tokenizer(source: Path, tmp_path: Path) -> None:
    expand_to_directory(source, tmp_path / "made")
    checkpoint = find_checkpoint(str(tmp_path / "made"))
    assert (checkpoint.architecture, checkpoint.dtype, checkpoint.eos_token_ids) == (
        "LlamaForCausalLM",
        "bfloat16",
        (2,),
    )
    assert "quantization_config" not in checkpoint.config
    before, after = Tokenizer.from_path(source), Tokenizer.from_path(tmp_path / "made")
    assert after.encode("ab a") == before.encode("ab a") != []
    assert after.eos_token_id == 2
    expand_to_gguf(source, tmp_path / "made.gguf")
    fields = gguf.GGUFReader(tmp_path / "made.gguf").fields
    assert fields["general.file_type"].contents() == int(gguf.LlamaFileType.MOSTLY_BF16)
    assert fields["tokenizer.ggml.tokens"].contents()[-1] == "Ġa"


def test_random_weights_are_the_same_for_llama_cpp(source: Path, tmp_path: Path) -> None:
    random_directory(QWEN3, source, tmp_path / "random")
    to_gguf(tmp_path / "random", tmp_path / "random.gguf")
    made, file = tensors_of(tmp_path / "random"), tensors_of(tmp_path / "random.gguf")
    assert made.keys() == file.keys() and len(made) == 2 + 2 * 11
    assert all(torch.equal(made[name], file[name]) for name in made)
    embedding = made["model.embed_tokens.weight"]
    assert embedding.std() == pytest.approx(0.02, rel=0.1) and embedding.shape == (128, 32)
    read = find_checkpoint(str(tmp_path / "random.gguf")).config
    assert {key: read[key] for key in ("hidden_size", "head_dim", "num_key_value_heads", "vocab_size")} == {
        key: QWEN3[key] for key in ("hidden_size", "head_dim", "num_key_value_heads", "vocab_size")
    }
    assert read["rms_norm_eps"] == pytest.approx(1e-6) and read["rope_theta"] == 1e6


def test_what_is_there_is_kept_and_what_broke_off_is_made_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.make_checkpoints.SHAPES", {"qwen3-0.6b": QWEN3})
    models = Models.inside(tmp_path)
    (tmp_path / "unfinished-smollm2-bf16").mkdir()
    (tmp_path / "unfinished-smollm2-bf16" / "model.safetensors").write_bytes(b"half")
    assert make_all(tmp_path, source) == models
    assert all(path.exists() for path in vars(models).values())
    assert not list(tmp_path.glob("unfinished-*"))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    make_all(tmp_path, source)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
