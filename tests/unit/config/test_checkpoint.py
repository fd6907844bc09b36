from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

from octavo.config.checkpoint import find_checkpoint, pull
from octavo.errors import CheckpointError, ConfigurationError, ModelNotFound, UnsupportedModel, WeightError
from tests.tiny_gguf import sizes, write_gguf

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 96, "eos_token_id": 2}


def model_directory(path: Path, config: Any = LLAMA, weights: bool = True, **files: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    if weights:
        (path / "model.safetensors").touch()
    return path


# --- directories, dicts, hub ids ---


def test_a_directory(tmp_path: Path) -> None:
    generation = {"eos_token_id": [2, 7], "temperature": 0.6}
    directory = model_directory(tmp_path / "tiny", LLAMA | {"torch_dtype": "bfloat16"}, generation_config=generation)
    found = find_checkpoint(str(directory), hf_overrides={"vocab_size": 50})
    assert (found.path, found.format, found.name) == (directory, "safetensors", "tiny")
    assert (found.architecture, found.dtype, found.eos_token_ids) == ("LlamaForCausalLM", "bfloat16", (2, 7))
    assert found.config == LLAMA | {"torch_dtype": "bfloat16", "vocab_size": 50}
    assert found.generation_config == generation


def test_dtype_has_two_names(tmp_path: Path) -> None:
    assert find_checkpoint(str(model_directory(tmp_path / "a", LLAMA | {"dtype": "float16"}))).dtype == "float16"
    assert find_checkpoint(str(model_directory(tmp_path / "b"))).dtype is None


def test_end_ids_come_from_the_config_where_generation_config_has_none(tmp_path: Path) -> None:
    assert find_checkpoint(str(model_directory(tmp_path))).eos_token_ids == (2,)


def test_generation_config_can_be_cut_to_its_ids_or_come_from_elsewhere(tmp_path: Path) -> None:
    directory = str(model_directory(tmp_path / "m", generation_config={"eos_token_id": 3, "top_p": 0.5}))
    other = model_directory(tmp_path / "o", generation_config={"top_k": 5})
    assert find_checkpoint(directory, generation_config="vllm").generation_config == {"eos_token_id": 3}
    assert find_checkpoint(directory, generation_config=str(other)).generation_config == {"top_k": 5}
    with pytest.raises(ConfigurationError, match=r"generation_config must be .* got 'nowhere'"):
        find_checkpoint(directory, generation_config="nowhere")


def test_dummy_needs_only_a_config(tmp_path: Path) -> None:
    directory = model_directory(tmp_path, weights=False)
    assert find_checkpoint(str(directory), load_format="dummy").format == "config"
    from_dict = find_checkpoint(LLAMA, load_format="dummy")
    assert (from_dict.path, from_dict.format, from_dict.name) == (None, "config", "llama")
    gguf = write_gguf(tmp_path / "m.gguf", "llama", sizes("llama"))
    assert find_checkpoint(str(gguf), load_format="dummy").format == "config"


@pytest.mark.parametrize(
    ("model", "settings", "error", "message"),
    [
        (LLAMA, {}, ConfigurationError, "dict needs load_format='dummy', got 'auto'"),
        ("x", {"load_format": "pt"}, ConfigurationError, "auto, safetensors, gguf, dummy, got 'pt'"),
        ("", {}, ModelNotFound, "got ''"),
        ("./missing", {}, ModelNotFound, "no file or directory ./missing"),
        ("some/where/deep", {}, ModelNotFound, "ORGANISATION/MODEL"),
    ],
)
def test_bad_names(model: Any, settings: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        find_checkpoint(model, **settings)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ("{", CheckpointError, "config.json cannot be read"),
        ("[]", CheckpointError, "should hold a JSON object, not a list"),
        ({"vocab_size": 3}, UnsupportedModel, "names no architecture"),
        (
            {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {}, "vision_config": {}},
            UnsupportedModel,
            "Gemma3ForConditionalGeneration is a multimodal model",
        ),
    ],
)
def test_bad_configs(tmp_path: Path, config: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        find_checkpoint(str(model_directory(tmp_path, config)))


def test_directories_without_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        find_checkpoint(str(tmp_path))
    directory = model_directory(tmp_path / "bin", weights=False)
    (directory / "pytorch_model.bin").touch()
    with pytest.raises(UnsupportedModel, match=r"no \.safetensors file \(it has pytorch_model\.bin"):
        find_checkpoint(str(directory))


def test_format_and_path_must_agree(tmp_path: Path) -> None:
    gguf = write_gguf(tmp_path / "m.gguf", "llama", sizes("llama"))
    with pytest.raises(ConfigurationError, match=r"'safetensors', but .* is a file"):
        find_checkpoint(str(gguf), load_format="safetensors")
    with pytest.raises(ConfigurationError, match=r"'gguf', but .* not a \.gguf file"):
        find_checkpoint(str(model_directory(tmp_path / "d")), load_format="gguf")


def test_a_directory_may_stand_for_its_one_gguf_file(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "a.gguf", "llama", sizes("llama"))
    assert find_checkpoint(str(tmp_path)).path == file
    write_gguf(tmp_path / "b.gguf", "llama", sizes("llama"))
    with pytest.raises(ModelNotFound, match=r"name one of them: a\.gguf, b\.gguf"):
        find_checkpoint(str(tmp_path))


def test_a_hub_id_is_fetched_once_with_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake(model: str, **settings: Any) -> str:
        calls.append((model, settings))
        return str(model_directory(tmp_path / "snapshot"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    found = find_checkpoint("org/tiny", revision="abc", allow_download=False)
    assert (found.name, found.path, found.format) == ("org/tiny", tmp_path / "snapshot", "safetensors")
    model, settings = calls[0]
    assert (model, settings["revision"], settings["local_files_only"]) == ("org/tiny", "abc", True)
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "model*.safetensors"} <= set(
        settings["allow_patterns"]
    )
    find_checkpoint("org/tiny", load_format="dummy")
    assert not any("safetensors" in pattern for pattern in calls[1][1]["allow_patterns"])
    assert pull("org/tiny", "def") == tmp_path / "snapshot"
    assert calls[2][1]["revision"] == "def"


def test_without_a_network_the_error_says_how_to_fetch_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("cannot reach the hub\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelNotFound, match=r"cannot reach the hub. With a network, `octavo pull org/tiny`"):
        find_checkpoint("org/tiny")


# --- GGUF ---


def config_of(
    tmp_path: Path, architecture: str, tensors: Any = None, extra: Any = None, **changes: Any
) -> dict[str, Any]:
    file = write_gguf(tmp_path / "m.gguf", architecture, sizes(architecture, **changes) | (extra or {}), tensors)
    return dict(find_checkpoint(str(file)).config)


def test_gguf_llama(tmp_path: Path) -> None:
    config = config_of(tmp_path, "llama", rope__freq_base=5000.0, rope__dimension_count=8)
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "rms_norm_eps": pytest.approx(1e-5),
        "hidden_act": "silu",
        "rope_theta": 5000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
    }


def test_gguf_ends_and_generation_config(tmp_path: Path) -> None:
    ids = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 9}
    file = write_gguf(tmp_path / "m.gguf", "llama", sizes("llama") | ids)
    found = find_checkpoint(str(file))
    assert found.generation_config == {"bos_token_id": 1, "eos_token_id": [2, 9]}
    assert found.eos_token_ids == (2, 9)
    assert found.name == "m"


def test_gguf_mistral_is_told_by_its_name_or_its_window(tmp_path: Path) -> None:
    named = config_of(tmp_path, "llama", extra={"general.basename": "Mistral"})
    assert (named["architectures"], named["sliding_window"]) == (["MistralForCausalLM"], None)
    windowed = config_of(tmp_path, "llama", attention__sliding_window=128)
    assert (windowed["model_type"], windowed["sliding_window"]) == ("mistral", 128)


def test_gguf_qwen(tmp_path: Path) -> None:
    embedding = np.zeros((96, 64), np.float16)
    tensors = {
        "token_embd.weight": embedding,
        "output.weight": embedding,
        "blk.0.attn_q.bias": np.zeros(64, np.float32),
    }
    qwen2 = config_of(tmp_path, "qwen2", tensors)
    assert (qwen2["architectures"], qwen2["attention_bias"]) == (["Qwen2ForCausalLM"], True)
    assert (qwen2["tie_word_embeddings"], qwen2["torch_dtype"], qwen2["head_dim"]) == (False, "float16", 16)
    qwen3 = config_of(tmp_path, "qwen3", attention__key_length=32)
    assert (qwen3["architectures"], qwen3["head_dim"]) == (["Qwen3ForCausalLM"], 32)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [(None, "sssssfss"), (4, "sssfsssf"), ([True, False, True, True, True, True, False, True], "sfssssfs")],
)
def test_gguf_gemma3(tmp_path: Path, pattern: Any, expected: str) -> None:
    config = config_of(
        tmp_path,
        "gemma3",
        block_count=8,
        attention__key_length=32,
        attention__sliding_window=64,
        attention__sliding_window_pattern=pattern,
    )
    assert "".join(kind[0] for kind in config["layer_types"]) == expected
    assert (config["architectures"], config["sliding_window"]) == (["Gemma3ForCausalLM"], 64)
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1e6, 1e4)
    assert (config["query_pre_attn_scalar"], config["hidden_activation"]) == (32, "gelu_pytorch_tanh")


def test_gguf_gemma3_27b_scales_by_its_width(tmp_path: Path) -> None:
    config = config_of(tmp_path, "gemma3", block_count=62, attention__key_length=32, attention__sliding_window=64)
    assert config["query_pre_attn_scalar"] == 64 // 4


def test_gguf_rotary_scaling(tmp_path: Path) -> None:
    linear = config_of(tmp_path, "llama", rope__scaling__type="linear", rope__scaling__factor=2.0)
    assert linear["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    yarn = config_of(
        tmp_path,
        "qwen2",
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=128,
    )
    assert yarn["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    with pytest.raises(UnsupportedModel, match="'longrope' is not read"):
        config_of(tmp_path, "llama", rope__scaling__type="longrope")


def llama3_divisors(factor: float, theta: float, half: int, high: float = 4.0) -> np.ndarray:
    """As transformers' `_compute_llama3_parameters` has it, as a divisor of each frequency."""
    divisors = []
    for i in range(half):
        wavelength = 2 * math.pi * theta ** (2 * i / (2 * half))
        smooth = (8192 / wavelength - 1.0) / (high - 1.0)
        mixed = 1 / ((1 - smooth) / factor + smooth)
        divisors.append(1.0 if wavelength < 8192 / high else factor if wavelength > 8192 else mixed)
    return np.array(divisors, np.float32)


def test_gguf_llama3_scaling_is_recovered_from_its_divisors(tmp_path: Path) -> None:
    embedding = np.zeros((96, 64), np.float32)
    divisors = llama3_divisors(32.0, 500000.0, 32)
    assert len({round(float(d), 3) for d in divisors}) > 3  # the smooth part is there
    tensors = {"token_embd.weight": embedding, "rope_freqs.weight": divisors}
    config = config_of(tmp_path, "llama", tensors, rope__freq_base=500000.0)
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    tensors["rope_freqs.weight"] = llama3_divisors(32.0, 500000.0, 32, high=8.0)
    with pytest.raises(UnsupportedModel, match=r"rope_freqs.weight\[\d+\] is"):
        config_of(tmp_path, "llama", tensors, rope__freq_base=500000.0)


@pytest.mark.parametrize(
    ("architecture", "changes", "extra", "error", "message"),
    [
        ("qwen4", {}, {}, UnsupportedModel, r"qwen4 is not known; octavo reads gemma3, llama, .*Did you mean qwen"),
        ("llama", {"expert_count": 8}, {}, UnsupportedModel, "mixture-of-experts"),
        ("llama", {}, {"split.count": 3}, UnsupportedModel, "one of 3 files of a split GGUF"),
        ("llama", {"block_count": None}, {}, WeightError, r"metadata has no llama\.block_count"),
        ("gemma3", {}, {}, WeightError, r"no gemma3\.attention\.sliding_window"),
    ],
)
def test_gguf_refusals(
    tmp_path: Path, architecture: str, changes: Any, extra: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        config_of(tmp_path, architecture, extra=extra, **changes)


def test_files_that_are_no_gguf(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"PK\x03\x04 nothing of the kind")
    with pytest.raises(UnsupportedModel, match="is not a GGUF file: it begins with b'PK"):
        find_checkpoint(str(file))
    file.write_bytes(b"GGUF" + (9).to_bytes(4, "little") + bytes(64))
    with pytest.raises(UnsupportedModel, match="GGUF version 9"):
        find_checkpoint(str(file))


def test_a_gguf_cut_off_anywhere_in_its_head_is_told(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", "llama", sizes("llama") | {"tokenizer.ggml.tokens": ["a", "bc"] * 9})
    whole = file.read_bytes()
    head = len(whole) - 96 * 64 * 4 - 64
    for length in range(5, head, 7):
        file.write_bytes(whole[:length])
        with pytest.raises(WeightError, match=f"is truncated: it should have .* and has {length:,}"):
            find_checkpoint(str(file))
