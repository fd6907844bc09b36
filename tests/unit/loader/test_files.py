from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from safetensors.torch import save_file

from octavo.config.checkpoint import Checkpoint, find_checkpoint
from octavo.config.gguf_header import BLOCK_TYPES, read_header
from octavo.errors import UnsupportedModel, WeightError
from octavo.loader import files
from octavo.loader.files import open_weights
from tests.tiny_gguf import sizes, write_gguf

CONFIG = {"architectures": ["LlamaForCausalLM"], "num_attention_heads": 4, "num_key_value_heads": 2}


def directory_checkpoint(path: Path) -> Checkpoint:
    return Checkpoint(str(path), path, "safetensors", CONFIG, {}, "tiny")


def read_all(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    with open_weights(checkpoint) as weights:
        return {entry.name: entry.read() for entry in weights}


# --- safetensors ---


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 4, generator=generator)
    return {
        "b.float32": values,
        "a.bfloat16": values.bfloat16(),
        "c.float16": values.half()[:3],
        "d.float8": values.to(torch.float8_e4m3fn),
        "e.int8": values.to(torch.int8),
        "f.empty": torch.empty(0, 4),
        "g.scalar": torch.tensor(2.5),
    }


def test_a_single_file(tmp_path: Path) -> None:
    tensors = some_tensors()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    weights = open_weights(directory_checkpoint(tmp_path))
    assert len(weights) == len(tensors)
    assert weights.total_bytes == sum(tensor.nbytes for tensor in tensors.values())
    for entry in weights:
        read = entry.read()
        assert (read.dtype, read.shape, entry.shape) == (
            tensors[entry.name].dtype,
            tensors[entry.name].shape,
            tuple(read.shape),
        )
        assert torch.equal(read.view(torch.uint8) if read.ndim else read, raw_view(tensors[entry.name]))
    assert {entry.name: entry.dtype for entry in weights}["a.bfloat16"] == "BF16"


def raw_view(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8) if tensor.ndim else tensor


def test_writing_to_a_read_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    save_file({"w": torch.ones(8)}, tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    read_all(directory_checkpoint(tmp_path))["w"].zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_tensors_outlive_the_files_object(tmp_path: Path) -> None:
    save_file({"w": torch.arange(8.0)}, tmp_path / "model.safetensors")
    assert read_all(directory_checkpoint(tmp_path))["w"].tolist() == list(range(8))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell what is in memory")
def test_tensors_that_were_read_leave_memory_as_the_next_one_comes(tmp_path: Path) -> None:
    tensors = {name: torch.full((1 << 20,), value) for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    save_file(tensors, tmp_path / "model.safetensors")
    held, seen = {}, []
    for entry in open_weights(directory_checkpoint(tmp_path)):
        held[entry.name] = entry.read()
        assert float(held[entry.name].sum()) == float(tensors[entry.name].sum())
        seen.append(resident(tmp_path / "model.safetensors"))
    assert max(seen) < 6 << 20 and min(seen) >= 4 << 20, "one tensor of 4 MiB at a time"
    assert resident(tmp_path / "model.safetensors") < 1 << 20
    assert all(torch.equal(held[name], tensor) for name, tensor in tensors.items()), "they can still be read"


def resident(path: Path) -> int:
    """Bytes of a mapped file that are in this process's memory."""
    found, is_of_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split(" ", 1)[0].endswith(":"):
            is_of_file = line.endswith(str(path))
        elif is_of_file and line.startswith("Rss:"):
            found += int(line.split()[1]) << 10
    return found


def test_a_header_is_read_anew_when_its_file_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, "llama", sizes("llama", vocab_size=32), {})
    first = read_header(path)
    assert read_header(path) is first
    write_gguf(path, "llama", sizes("llama", vocab_size=64), {})
    assert read_header(path).metadata["llama.vocab_size"] == 64


def sharded(path: Path) -> dict[str, torch.Tensor]:
    tensors = {f"t{i}": torch.full((4, 4), float(i)) for i in range(5)}
    shards = {"m-1.safetensors": ("t3", "t0"), "m-2.safetensors": ("t1", "t2", "t4")}
    for name, members in shards.items():
        save_file({member: tensors[member] for member in members}, path / name)
    index = {
        "metadata": {"total_size": 5 * 64},
        "weight_map": {member: name for name, members in shards.items() for member in members},
    }
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


def test_shards(tmp_path: Path) -> None:
    tensors = sharded(tmp_path)
    found = read_all(directory_checkpoint(tmp_path))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_missing_shard_is_named_with_the_sizes(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "m-2.safetensors").unlink()
    size = (tmp_path / "m-1.safetensors").stat().st_size
    message = rf"lacks m-2.safetensors \(1 of 2 files, 3 tensors; the index promises 320 bytes in all, {size} are here"
    with pytest.raises(WeightError, match=message):
        open_weights(directory_checkpoint(tmp_path))


def test_a_truncated_shard_is_named_with_the_sizes(tmp_path: Path) -> None:
    sharded(tmp_path)
    shard = tmp_path / "m-2.safetensors"
    whole = shard.read_bytes()
    for length in (3, 40, len(whole) - 1):
        shard.write_bytes(whole[:length])
        with pytest.raises(WeightError, match=rf"m-2.safetensors is truncated: it should have .* and has {length}"):
            open_weights(directory_checkpoint(tmp_path))
    with pytest.raises(WeightError, match=f"it should have {len(whole)} bytes and has {len(whole) - 1}"):
        open_weights(directory_checkpoint(tmp_path))


def test_an_index_that_promises_too_much_or_leaves_the_directory(tmp_path: Path) -> None:
    sharded(tmp_path)
    index_file = tmp_path / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    index["weight_map"]["t9"] = "m-1.safetensors"
    index_file.write_text(json.dumps(index))
    with pytest.raises(WeightError, match=r"m-1.safetensors lacks the tensor t9"):
        open_weights(directory_checkpoint(tmp_path))
    index["weight_map"]["t9"] = "../m-1.safetensors"
    index_file.write_text(json.dumps(index))
    with pytest.raises(WeightError, match="which is no file name"):
        open_weights(directory_checkpoint(tmp_path))
    index_file.write_text("{}")
    with pytest.raises(WeightError, match="has no weight_map"):
        open_weights(directory_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("header", "error", "message"),
    [
        (b"not json", WeightError, "its header is damaged"),
        (b"[1]", WeightError, "its header is damaged"),
        (b'{"w": {"dtype": "F32"}}', WeightError, "its header is damaged"),
        (b'{"w":{"dtype":"F4","shape":[1],"data_offsets":[0,4]}}', UnsupportedModel, "tensor w is stored as F4"),
        (
            b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
            WeightError,
            r"w of shape \[2\] and type F32 needs 8 bytes, but has 4",
        ),
    ],
)
def test_damaged_headers(tmp_path: Path, header: bytes, error: type[Exception], message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(error, match=message):
        open_weights(directory_checkpoint(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 16)
    with pytest.raises(WeightError, match="is not a safetensors file"):
        open_weights(directory_checkpoint(tmp_path))


def test_several_files_without_an_index(tmp_path: Path) -> None:
    for name in ("one.safetensors", "two.safetensors"):
        save_file({"w": torch.ones(1)}, tmp_path / name)
    with pytest.raises(WeightError, match=r"files: one.safetensors, two.safetensors"):
        open_weights(directory_checkpoint(tmp_path))


def test_a_configuration_alone_has_no_weights() -> None:
    with pytest.raises(WeightError, match="configuration alone"):
        open_weights(Checkpoint("(dict)", None, "config", CONFIG, {}, "x"))


# --- GGUF: names and orders ---


def gguf_checkpoint(path: Path, architecture: str, tensors: dict[str, Any], **changes: Any) -> Checkpoint:
    tensors = {"token_embd.weight": np.zeros((96, 64), np.float32), **tensors}
    return find_checkpoint(str(write_gguf(path / "m.gguf", architecture, sizes(architecture, **changes), tensors)))


def counted(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_gguf_names(tmp_path: Path) -> None:
    layer = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]
    tensors = {f"blk.1.{part}.weight": counted(64, 64) for part in layer}
    tensors |= {"output.weight": counted(96, 64), "output_norm.weight": counted(64), "blk.1.attn_v.bias": counted(64)}
    inside = [
        "input_layernorm.weight",
        "self_attn.q_proj.weight",
        "self_attn.k_proj.weight",
        "self_attn.v_proj.weight",
        "self_attn.o_proj.weight",
        "post_attention_layernorm.weight",
        "mlp.gate_proj.weight",
        "mlp.up_proj.weight",
        "mlp.down_proj.weight",
    ]
    expected = ["model.embed_tokens.weight", *(f"model.layers.1.{name}" for name in inside)]
    expected += ["lm_head.weight", "model.norm.weight", "model.layers.1.self_attn.v_proj.bias"]
    assert [entry.name for entry in open_weights(gguf_checkpoint(tmp_path, "qwen2", tensors))] == expected


def test_gguf_gemma3_names_and_norms(tmp_path: Path) -> None:
    parts = ["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "attn_q_norm"]
    tensors = {f"blk.0.{part}.weight": np.full(4, 1.25 + i, np.float32) for i, part in enumerate(parts)}
    tensors |= {"output_norm.weight": np.full(4, 3.0, np.float32), "blk.0.ffn_up.weight": counted(4, 4)}
    found = read_all(gguf_checkpoint(tmp_path, "gemma3", tensors, attention__sliding_window=8))
    assert {name: float(tensor.view(-1)[0]) for name, tensor in found.items()} == {
        "model.embed_tokens.weight": 0.0,
        "model.layers.0.input_layernorm.weight": 0.25,
        "model.layers.0.post_attention_layernorm.weight": 1.25,
        "model.layers.0.pre_feedforward_layernorm.weight": 2.25,
        "model.layers.0.post_feedforward_layernorm.weight": 3.25,
        "model.layers.0.self_attn.q_norm.weight": 4.25,
        "model.norm.weight": 2.0,
        "model.layers.0.mlp.up_proj.weight": 0.0,
    }


def in_gguf_order(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """What the converter does: in each head, row r of the first half lands at 2r, of the second half at 2r + 1."""
    result = np.empty_like(rows)
    size = len(rows) // num_heads
    for head in range(num_heads):
        for row in range(size // 2):
            result[head * size + 2 * row] = rows[head * size + row]
            result[head * size + 2 * row + 1] = rows[head * size + size // 2 + row]
    return result


def test_gguf_llama_rows_of_q_and_k_are_put_back(tmp_path: Path) -> None:
    q, k, v, bias = counted(64, 64), counted(32, 64) + 0.5, counted(32, 64), counted(64)
    tensors = {
        "blk.0.attn_q.weight": in_gguf_order(q, 4),
        "blk.0.attn_q.bias": in_gguf_order(bias, 4),
        "blk.0.attn_k.weight": in_gguf_order(k, 2),
        "blk.0.attn_v.weight": v,
    }
    found = read_all(gguf_checkpoint(tmp_path, "llama", tensors))
    prefix = "model.layers.0.self_attn"
    for name, expected in (("q_proj.weight", q), ("q_proj.bias", bias), ("k_proj.weight", k), ("v_proj.weight", v)):
        assert np.array_equal(found[f"{prefix}.{name}"].numpy(), expected), name
    untouched = read_all(gguf_checkpoint(tmp_path, "qwen2", tensors))
    assert np.array_equal(untouched[f"{prefix}.q_proj.weight"].numpy(), in_gguf_order(q, 4))


def test_gguf_raw_rows_are_put_back_too(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    stored = quants.quantize(in_gguf_order(values, 4), GGMLQuantizationType.Q4_1)
    checkpoint = gguf_checkpoint(tmp_path, "llama", {"blk.0.attn_q.weight": (stored, "Q4_1")})
    entry = next(entry for entry in open_weights(checkpoint) if entry.name.endswith("q_proj.weight"))
    raw, kind = entry.raw()
    assert (kind, raw.shape, raw.dtype) == ("Q4_1", (64, 2 * 20), np.uint8)
    assert np.array_equal(raw, quants.quantize(values, GGMLQuantizationType.Q4_1))
    assert np.array_equal(quants.dequantize(raw, GGMLQuantizationType.Q4_1), entry.read().numpy())


def test_raw_refuses_where_reading_changes_values(tmp_path: Path) -> None:
    tensors = {"output_norm.weight": np.ones(4, np.float32)}
    checkpoint = gguf_checkpoint(tmp_path, "gemma3", tensors, attention__sliding_window=8)
    norm = next(entry for entry in open_weights(checkpoint) if entry.name == "model.norm.weight")
    with pytest.raises(ValueError, match="stored with \\+1"):
        norm.raw()


def test_gguf_tensors_that_have_no_place_are_told(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match=r"the tensor blk.0.ssm_in.weight has no place"):
        open_weights(gguf_checkpoint(tmp_path, "llama", {"blk.0.ssm_in.weight": counted(4)}))


def test_gguf_frequency_divisors_belong_to_the_config(tmp_path: Path) -> None:
    checkpoint = gguf_checkpoint(tmp_path, "llama", {"rope_freqs.weight": np.ones(8, np.float32)})
    assert [entry.name for entry in open_weights(checkpoint)] == ["model.embed_tokens.weight"]


def test_a_truncated_gguf_is_named_with_the_sizes(tmp_path: Path) -> None:
    checkpoint = gguf_checkpoint(tmp_path, "qwen2", {"output.weight": counted(96, 64)})
    file = tmp_path / "m.gguf"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(WeightError, match=f"m.gguf is truncated: it should have {len(whole):,} bytes and has"):
        open_weights(checkpoint)


def test_gguf_types_that_are_not_read_are_named(tmp_path: Path) -> None:
    stored = np.zeros((4, 18), np.uint8)
    with pytest.raises(UnsupportedModel, match=r"blk.0.ffn_up.weight is stored as IQ4_NL; octavo reads F32, F16, Q4_0"):
        gguf_checkpoint(tmp_path, "llama", {"blk.0.ffn_up.weight": (stored, "IQ4_NL")})


# --- GGUF: stored types, against one scalar function a type, after the layouts in ggml-common.h ---


def half(block: bytes, at: int) -> float:
    return float(struct.unpack_from("<e", block, at)[0])


def nibbles_of_32(stored: bytes) -> list[int]:
    """Low halves of 16 bytes, then their high halves."""
    return [byte & 15 for byte in stored] + [byte >> 4 for byte in stored]


def with_fifth_bit(stored: bytes, bits: int) -> list[int]:
    return [low | (bits >> i & 1) << 4 for i, low in enumerate(nibbles_of_32(stored))]


def q4_0(block: bytes) -> list[float]:
    return [half(block, 0) * (q - 8) for q in nibbles_of_32(block[2:])]


def q4_1(block: bytes) -> list[float]:
    return [half(block, 0) * q + half(block, 2) for q in nibbles_of_32(block[4:])]


def q5_0(block: bytes) -> list[float]:
    quants_ = with_fifth_bit(block[6:], int.from_bytes(block[2:6], "little"))
    return [half(block, 0) * (q - 16) for q in quants_]


def q5_1(block: bytes) -> list[float]:
    quants_ = with_fifth_bit(block[8:], int.from_bytes(block[4:8], "little"))
    return [half(block, 0) * q + half(block, 2) for q in quants_]


def q8_0(block: bytes) -> list[float]:
    return [half(block, 0) * q for q in struct.unpack("<32b", block[2:])]


def q2_k(block: bytes) -> list[float]:
    scales, quants_, scale, minimum = block[:16], block[16:80], half(block, 80), half(block, 82)
    values = []
    for i in range(256):
        upper, within = divmod(i, 128)
        q = quants_[32 * upper + within % 32] >> 2 * (within // 32) & 3
        packed = scales[i // 16]
        values.append(scale * (packed & 15) * q - minimum * (packed >> 4))
    return values


def q3_k(block: bytes) -> list[float]:
    high, quants_, packed, scale = block[:32], block[32:96], block[96:108], half(block, 108)
    scales = []
    for i in range(16):
        low = packed[i] & 15 if i < 8 else packed[i - 8] >> 4
        scales.append((low | (packed[8 + i % 4] >> 2 * (i // 4) & 3) << 4) - 32)
    values = []
    for i in range(256):
        upper, within = divmod(i, 128)
        q = quants_[32 * upper + within % 32] >> 2 * (within // 32) & 3
        is_set = high[i % 32] >> i // 32 & 1
        values.append(scale * scales[i // 16] * (q - (0 if is_set else 4)))
    return values


def scale_and_minimum(packed: bytes, i: int) -> tuple[int, int]:
    """Eight pairs of 6 bits in 12 bytes."""
    if i < 4:
        return packed[i] & 63, packed[i + 4] & 63
    return (packed[i + 4] & 15) | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4


def q4_k(block: bytes) -> list[float]:
    values = []
    for i in range(256):
        scale, minimum = scale_and_minimum(block[4:16], i // 32)
        q = block[16 + 32 * (i // 64) + i % 32] >> 4 * (i // 32 % 2) & 15
        values.append(half(block, 0) * scale * q - half(block, 2) * minimum)
    return values


def q5_k(block: bytes) -> list[float]:
    values = []
    for i in range(256):
        scale, minimum = scale_and_minimum(block[4:16], i // 32)
        q = block[48 + 32 * (i // 64) + i % 32] >> 4 * (i // 32 % 2) & 15
        q |= (block[16 + i % 32] >> i // 32 & 1) << 4
        values.append(half(block, 0) * scale * q - half(block, 2) * minimum)
    return values


def q6_k(block: bytes) -> list[float]:
    values = []
    for i in range(256):
        upper, within = divmod(i, 128)
        quarter, place = divmod(within, 32)
        low = block[64 * upper + 32 * (quarter % 2) + place] >> 4 * (quarter // 2) & 15
        high = block[128 + 32 * upper + place] >> 2 * quarter & 3
        (scale,) = struct.unpack_from("<b", block, 192 + i // 16)
        values.append(half(block, 208) * scale * ((low | high << 4) - 32))
    return values


# type -> (values of one block, where its float16 numbers lie)
SCALAR: dict[str, tuple[Any, tuple[int, ...]]] = {
    "Q4_0": (q4_0, (0,)),
    "Q4_1": (q4_1, (0, 2)),
    "Q5_0": (q5_0, (0,)),
    "Q5_1": (q5_1, (0, 2)),
    "Q8_0": (q8_0, (0,)),
    "Q2_K": (q2_k, (80, 82)),
    "Q3_K": (q3_k, (108,)),
    "Q4_K": (q4_k, (0, 2)),
    "Q5_K": (q5_k, (0, 2)),
    "Q6_K": (q6_k, (208,)),
}
LAYOUTS = {block.name: block for block in BLOCK_TYPES.values()}


def random_blocks(kind: str, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Random bytes [rows, bytes per row] whose float16 numbers are small and finite."""
    layout, generator = LAYOUTS[kind], np.random.default_rng(seed)
    num_blocks = shape[0] * shape[1] // layout.block_size
    blocks = generator.integers(0, 256, (num_blocks, layout.block_bytes), dtype=np.uint8)
    for at in SCALAR[kind][1]:
        blocks[:, at : at + 2] = generator.normal(0, 0.1, (num_blocks, 1)).astype("<f2").view(np.uint8)
    return blocks.reshape(shape[0], -1)


@pytest.mark.parametrize("kind", sorted(SCALAR))
def test_quantised_types(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (5, 512)
    stored = random_blocks(kind, shape)
    layout = LAYOUTS[kind]
    blocks = stored.reshape(-1, layout.block_bytes)
    expected = np.array([SCALAR[kind][0](block.tobytes()) for block in blocks], np.float64).reshape(shape)
    checkpoint = gguf_checkpoint(tmp_path, "qwen2", {"output.weight": (stored, kind)})
    for chunk in (1 << 17, 3 * layout.block_size):  # in one piece; in pieces, the last one shorter
        monkeypatch.setattr(files, "_CHUNK_VALUES", chunk)
        entry = next(entry for entry in open_weights(checkpoint) if entry.name == "lm_head.weight")
        assert (entry.dtype, entry.shape, entry.nbytes, entry.is_quantized) == (kind, shape, stored.nbytes, True)
        read = entry.read()
        assert read.dtype == torch.float32
        np.testing.assert_allclose(read.numpy(), expected, rtol=2e-6, atol=1e-5)


def test_several_threads_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = gguf_checkpoint(tmp_path, "qwen2", {"output.weight": (random_blocks("Q5_K", (8, 512)), "Q5_K")})
    alone = read_all(checkpoint)["lm_head.weight"]
    monkeypatch.setattr(files, "_CHUNK_VALUES", 512)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert torch.equal(read_all(checkpoint)["lm_head.weight"], alone)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_what_the_gguf_package_quantises_comes_back_near(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    stored = quants.quantize(values, GGMLQuantizationType[kind])
    read = read_all(gguf_checkpoint(tmp_path, "qwen2", {"output.weight": (stored, kind)}))["lm_head.weight"].numpy()
    step = np.ptp(values.reshape(-1, 32), axis=1).max() / (2 ** int(kind[1]) - 1)
    assert np.abs(read - values).max() <= 1.2 * step


def test_float_types_keep_their_dtype(tmp_path: Path) -> None:
    values = np.random.default_rng(2).standard_normal((4, 64)).astype(np.float32)
    brain = torch.from_numpy(values).bfloat16()
    tensors = {
        "output.weight": values.astype(np.float16),
        "blk.0.ffn_up.weight": (brain.view(torch.uint8).numpy(), "BF16"),
        "blk.0.ffn_gate.weight": values,
    }
    found = read_all(gguf_checkpoint(tmp_path, "qwen2", tensors))
    assert torch.equal(found["lm_head.weight"], torch.from_numpy(values).half())
    assert torch.equal(found["model.layers.0.mlp.up_proj.weight"], brain)
    assert torch.equal(found["model.layers.0.mlp.gate_proj.weight"], torch.from_numpy(values))
