"""Translates a GGUF file's metadata into the keys of a Hugging Face config.json.

The metadata keys are those of the GGUF specification; what each architecture's converter leaves out
(Gemma 3's window pattern, Llama 3's rotary scaling) is restored here.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from octavo.config.gguf_header import GgufHeader
from octavo.errors import UnsupportedModel, WeightError

_FLOAT_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def config_from_gguf(header: GgufHeader) -> dict[str, Any]:
    """config.json's keys for the model in this file.

    Raises UnsupportedModel for an architecture that is not translated, WeightError for missing metadata.
    """
    architecture = str(header.metadata.get("general.architecture", "")) or "(none)"
    if architecture not in _TRANSLATORS:
        known = sorted(_TRANSLATORS)
        nearest = get_close_matches(architecture, known, n=1)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        raise UnsupportedModel(
            f"{header.path}: GGUF architecture {architecture} is not known; octavo reads {', '.join(known)}.{hint}"
        )
    if int(header.metadata.get("split.count", 1)) > 1:
        raise UnsupportedModel(
            f"{header.path} is one of {header.metadata['split.count']} files of a split GGUF; join them first "
            "(llama-gguf-split --merge)"
        )
    keys = _Keys(header, architecture)
    if int(keys.get("expert_count", 0)) > 0:
        raise UnsupportedModel(f"{header.path}: GGUF files of mixture-of-experts models are not read")
    config = _shared_keys(header, keys)
    _TRANSLATORS[architecture](header, keys, config)
    config["torch_dtype"], config["quantization_config"] = _stored_types(header)
    if config["quantization_config"] is None:
        del config["quantization_config"]
    return config


def generation_config_from_gguf(header: GgufHeader) -> dict[str, Any]:
    """generation_config.json's token ids. `eos_token_id` is a list where the file names several ends."""
    metadata = header.metadata
    found = {
        f"{name}_token_id": int(metadata[key])
        for name, key in (("bos", "tokenizer.ggml.bos_token_id"), ("pad", "tokenizer.ggml.padding_token_id"))
        if key in metadata
    }
    ends = [
        int(metadata[key])
        for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
        if key in metadata
    ]
    ends = list(dict.fromkeys(ends))
    result: dict[str, Any] = dict(found)
    if ends:
        result["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return result


class _Keys:
    """Metadata of one architecture: `get("block_count")` reads `llama.block_count`."""

    def __init__(self, header: GgufHeader, prefix: str) -> None:
        self.header, self.prefix = header, prefix

    def get(self, name: str, default: Any = None) -> Any:
        return self.header.metadata.get(f"{self.prefix}.{name}", default)

    def need(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise WeightError(f"{self.header.path}: the metadata has no {self.prefix}.{name}")
        return value


def _shared_keys(header: GgufHeader, keys: _Keys) -> dict[str, Any]:
    embedding = header.tensor_by_name.get("token_embd.weight")
    if embedding is None:
        raise WeightError(f"{header.path} has no tensor token_embd.weight")
    hidden_size, num_heads = int(keys.need("embedding_length")), int(keys.need("attention.head_count"))
    head_dim = keys.get("attention.key_length") or keys.get("rope.dimension_count") or hidden_size // num_heads
    config: dict[str, Any] = {
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden_size,
        "intermediate_size": int(keys.need("feed_forward_length")),
        "num_hidden_layers": int(keys.need("block_count")),
        "num_attention_heads": num_heads,
        "num_key_value_heads": int(keys.get("attention.head_count_kv", num_heads)),
        "head_dim": int(head_dim),
        "max_position_embeddings": int(keys.need("context_length")),
        "rms_norm_eps": float(keys.need("attention.layer_norm_rms_epsilon")),
        "hidden_act": "silu",
        "rope_theta": float(keys.get("rope.freq_base", 10000.0)),
        "rope_scaling": _rope_scaling(header, keys),
        "tie_word_embeddings": "output.weight" not in header.tensor_by_name,
        "attention_bias": "blk.0.attn_q.bias" in header.tensor_by_name,
    }
    return config | generation_config_from_gguf(header)


def _rope_scaling(header: GgufHeader, keys: _Keys) -> dict[str, Any] | None:
    kind = keys.get("rope.scaling.type", "none")
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear"))
    if kind == "yarn":
        scaling = {"rope_type": "yarn", "factor": float(keys.need("rope.scaling.factor"))}
        for name, key in (
            ("original_max_position_embeddings", "rope.scaling.original_context_length"),
            ("beta_fast", "rope.scaling.yarn_beta_fast"),
            ("beta_slow", "rope.scaling.yarn_beta_slow"),
        ):
            if keys.get(key) is not None:
                scaling[name] = keys.get(key)
        return scaling
    if kind not in ("none", "linear"):
        raise UnsupportedModel(f"{header.path}: rotary scaling {kind!r} is not read from GGUF; none, linear, yarn are")
    if "rope_freqs.weight" in header.tensor_by_name:
        return _llama3_scaling(header, keys)
    if factor is not None and float(factor) != 1.0:
        return {"rope_type": "linear", "factor": float(factor)}
    return None


def _llama3_scaling(header: GgufHeader, keys: _Keys) -> dict[str, Any]:
    """The parameters behind `rope_freqs.weight`, the divisors [head_dim / 2] a Llama 3 file stores in their place.

    Every published Llama 3 uses low 1, high 4 and 8,192 original positions; the file's numbers must agree with that.
    """
    tensor = header.tensor_by_name["rope_freqs.weight"]
    if tensor.type_name != "F32":
        raise UnsupportedModel(f"{header.path}: rope_freqs.weight is stored as {tensor.type_name}, not F32")
    stored = struct.unpack(f"<{tensor.nbytes // 4}f", header.read_bytes(tensor))
    theta, low, high, original = float(keys.get("rope.freq_base", 10000.0)), 1.0, 4.0, 8192
    factor = max(stored)
    for i, divisor in enumerate(stored):
        wavelength = 2 * math.pi * theta ** (i / len(stored))
        if wavelength < original / high:
            expected = 1.0
        elif wavelength > original / low:
            expected = factor
        else:
            smooth = (original / wavelength - low) / (high - low)
            expected = 1 / ((1 - smooth) / factor + smooth)
        if not math.isclose(divisor, expected, rel_tol=1e-4):
            raise UnsupportedModel(
                f"{header.path}: rope_freqs.weight[{i}] is {divisor:.6g} where Llama 3 scaling by {factor:g} gives "
                f"{expected:.6g}; other frequency factors are not read"
            )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _llama(header: GgufHeader, keys: _Keys, config: dict[str, Any]) -> None:
    """Llama and Mistral share one GGUF architecture and one computation; the name or a window tells them apart."""
    window = keys.get("attention.sliding_window")
    named = " ".join(str(header.metadata.get(f"general.{key}", "")) for key in ("basename", "name")).lower()
    config["mlp_bias"] = "blk.0.ffn_gate.bias" in header.tensor_by_name
    if window or "mistral" in named:
        config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
        config["sliding_window"] = int(window) if window else None
    else:
        config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def _qwen2(header: GgufHeader, keys: _Keys, config: dict[str, Any]) -> None:
    config |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False}


def _qwen3(header: GgufHeader, keys: _Keys, config: dict[str, Any]) -> None:
    config |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "use_sliding_window": False}


def _gemma3(header: GgufHeader, keys: _Keys, config: dict[str, Any]) -> None:
    num_layers, num_heads = config["num_hidden_layers"], config["num_attention_heads"]
    # The converter writes neither the pattern nor the scale; the 27B model (62 layers) alone scales by hidden / heads.
    scalar = config["hidden_size"] // num_heads if num_layers == 62 else config["head_dim"]
    config |= {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "rope_theta": float(keys.get("rope.freq_base", 1_000_000.0)),
        "rope_local_base_freq": float(keys.get("rope.freq_base_swa", 10_000.0)),
        "sliding_window": int(keys.need("attention.sliding_window")),
        "layer_types": _layer_types(header, keys, num_layers),
        "attn_logit_softcapping": keys.get("attn_logit_softcapping"),
        "final_logit_softcapping": keys.get("final_logit_softcapping"),
    }
    del config["hidden_act"]


def _layer_types(header: GgufHeader, keys: _Keys, num_layers: int) -> list[str]:
    key = f"{keys.prefix}.attention.sliding_window_pattern"
    if header.has_array(key):  # one flag a layer: does it slide?
        slides = [bool(flag) for flag in header.array(key)]
        if len(slides) != num_layers:
            raise WeightError(f"{header.path}: {key} has {len(slides)} entries for {num_layers} layers")
    else:  # every n-th layer is full
        period = int(header.metadata.get(key, 6))
        slides = [(layer + 1) % period != 0 for layer in range(num_layers)]
    return ["sliding_attention" if slide else "full_attention" for slide in slides]


_TRANSLATORS: Mapping[str, Callable[[GgufHeader, _Keys, dict[str, Any]], None]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
}


def _stored_types(header: GgufHeader) -> tuple[str, dict[str, Any] | None]:
    """The dtype to compute in, and what is quantised: `file_type` is the type of most bytes of the layers."""
    nbytes: Counter[str] = Counter()
    for tensor in header.tensors:
        if len(tensor.shape) > 1:
            nbytes[tensor.type_name] += tensor.nbytes
    quantized = {name for name in nbytes if name not in _FLOAT_TYPES}
    if not quantized:
        return _FLOAT_TYPES[nbytes.most_common(1)[0][0]], None
    in_layers: Counter[str] = Counter()
    for tensor in header.tensors:
        if tensor.name.startswith("blk.") and tensor.type_name in quantized:
            in_layers[tensor.type_name] += tensor.nbytes
    most = (in_layers or nbytes).most_common(1)[0][0]
    return "bfloat16", {"quant_method": "gguf", "file_type": most}
