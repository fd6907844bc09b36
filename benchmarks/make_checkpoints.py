#!/usr/bin/env python3
"""The models of compare_cpu.py in every form that an engine reads, made once into a directory:

smollm2-q4_1.gguf       SmolLM2-135M-Instruct as it is published (a link to the file)
smollm2-bf16/           the same numbers, expanded and rounded to bf16, as Hugging Face lays a model out
smollm2-bf16.gguf       the same bf16 numbers for llama.cpp
qwen3-0.6b/             random bf16 weights of that shape, with SmolLM2's tokenizer so that nothing misses one
qwen3-0.6b.gguf         the same numbers, no vocabulary

benchmarks/make_checkpoints.py [--directory D] [--gguf FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from octavo.cli.bench.workloads import SHAPES
from octavo.config.checkpoint import find_checkpoint
from octavo.config.demo import demo_model
from octavo.config.env import cache_directory
from octavo.config.gguf_header import read_header
from octavo.loader.files import open_weights
from octavo.tokenization.tokenizer import Tokenizer

_DEVIATION = 0.02  # of random weights
_BF16 = gguf.GGMLQuantizationType.BF16


@dataclass(frozen=True)
class Models:
    """Where they lie."""

    q4_1: Path
    bf16: Path
    bf16_gguf: Path
    qwen3: Path
    qwen3_gguf: Path

    @classmethod
    def inside(cls, directory: Path) -> Models:
        names = ("smollm2-q4_1.gguf", "smollm2-bf16", "smollm2-bf16.gguf", "qwen3-0.6b", "qwen3-0.6b.gguf")
        return cls(*(directory / name for name in names))


def default_directory() -> Path:
    return cache_directory() / "benchmarks"


def make_all(directory: Path, source: Path | None = None) -> Models:
    """Makes what is not there yet. A form that was broken off half-way has another name and is made again."""
    directory.mkdir(parents=True, exist_ok=True)
    models = Models.inside(directory)
    if not models.q4_1.exists():
        models.q4_1.unlink(missing_ok=True)  # a link that leads nowhere
        models.q4_1.symlink_to((source or demo_model()).resolve())
    makers: list[tuple[Path, Callable[[Path], None]]] = [
        (models.bf16, lambda path: expand_to_directory(models.q4_1, path)),
        (models.bf16_gguf, lambda path: expand_to_gguf(models.q4_1, path)),
        (models.qwen3, lambda path: random_directory(SHAPES["qwen3-0.6b"], models.q4_1, path)),
        (models.qwen3_gguf, lambda path: directory_to_gguf(models.qwen3, path)),
    ]
    for path, make in makers:
        if path.exists():
            continue
        print(f"making {path}", file=sys.stderr, flush=True)
        unfinished = path.with_name("unfinished-" + path.name)
        make(unfinished)
        unfinished.rename(path)
    return models


def expand_to_directory(source: Path, target: Path) -> None:
    """A GGUF file's model as config.json, tokenizer.json and bf16 safetensors."""
    checkpoint = find_checkpoint(str(source))
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    _write_directory(target, config | {"torch_dtype": "bfloat16"}, source)
    with open_weights(checkpoint) as weights:
        # copies: some of them are views of the mapped file
        state = {entry.name: entry.read().to(torch.bfloat16).clone().contiguous() for entry in weights}
    save_file(state, target / "model.safetensors", {"format": "pt"})


def random_directory(config: dict[str, Any], tokenizer_source: Path, target: Path) -> None:
    """Normally distributed weights, norms of one."""
    _write_directory(target, config, tokenizer_source, tokenizer_config=False)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in _qwen3_tensors(config):
        if len(shape) == 1:
            state[name] = torch.ones(shape, dtype=torch.bfloat16)
        else:
            state[name] = (torch.randn(shape, generator=generator) * _DEVIATION).to(torch.bfloat16)
    save_file(state, target / "model.safetensors", {"format": "pt"})


def expand_to_gguf(source: Path, target: Path) -> None:
    """The same file with matrices in bf16."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.quantization_version"):
            continue
        value, kind = field.contents(), field.types[0]
        if name == "general.file_type":
            value = int(gguf.LlamaFileType.MOSTLY_BF16)
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, kind, inner)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        # GGUF counts the innermost extent first
        _add(writer, tensor.name, torch.from_numpy(np.array(values)).reshape(*map(int, tensor.shape[::-1])))
    _write(writer)


def directory_to_gguf(source: Path, target: Path) -> None:
    """A Qwen3 checkpoint without its tokenizer: llama.cpp takes token ids."""
    checkpoint = find_checkpoint(str(source))
    config = checkpoint.config
    writer = gguf.GGUFWriter(target, "qwen3")
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(float(config["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    with open_weights(checkpoint) as weights:
        for entry in weights:
            name = names.get_name(entry.name, try_suffixes=(".weight",))
            assert name is not None, entry.name
            _add(writer, name, entry.read())
        _write(writer)  # while the file is mapped


def _add(writer: gguf.GGUFWriter, name: str, values: torch.Tensor) -> None:
    """Matrices as bf16, vectors as float32, as llama.cpp's own converter stores them."""
    if values.dim() == 1:
        writer.add_tensor(name, values.float().contiguous().numpy())
        return
    raw = values.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
    writer.add_tensor(name, raw, raw_dtype=_BF16)


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_directory(target: Path, config: dict[str, Any], source: Path, tokenizer_config: bool = True) -> None:
    """Everything but the weights. `source`: the GGUF file whose tokenizer it gets."""
    target.mkdir(exist_ok=True)
    tokenizer = Tokenizer.from_gguf(source)
    tokenizer.backend.save(str(target / "tokenizer.json"))
    named: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.special_tokens}
    metadata = read_header(source).metadata
    if tokenizer_config:
        named["chat_template"] = metadata["tokenizer.chat_template"]
        ends = {"eos_token_id": metadata["tokenizer.ggml.eos_token_id"]}
        (target / "generation_config.json").write_text(json.dumps(ends))
    (target / "tokenizer_config.json").write_text(json.dumps(named, indent=1))
    (target / "config.json").write_text(json.dumps(config, indent=1))


def _qwen3_tensors(config: dict[str, Any]) -> Iterable[tuple[str, tuple[int, ...]]]:
    hidden, mlp, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "self_attn.q_proj.weight", (q, hidden)
        yield prefix + "self_attn.k_proj.weight", (kv, hidden)
        yield prefix + "self_attn.v_proj.weight", (kv, hidden)
        yield prefix + "self_attn.o_proj.weight", (hidden, q)
        yield prefix + "self_attn.q_norm.weight", (head,)
        yield prefix + "self_attn.k_norm.weight", (head,)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        yield prefix + "mlp.gate_proj.weight", (mlp, hidden)
        yield prefix + "mlp.up_proj.weight", (mlp, hidden)
        yield prefix + "mlp.down_proj.weight", (hidden, mlp)
    yield "model.norm.weight", (hidden,)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=default_directory())
    parser.add_argument("--gguf", type=Path, help="SmolLM2's Q4_1 file; else the demo model, fetched if need be")
    args = parser.parse_args()
    for path in vars(make_all(args.directory, args.gguf)).values():
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
