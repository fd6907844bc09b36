"""Writes small GGUF files with the `gguf` package's own writer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

Tensor = np.ndarray | tuple[np.ndarray, str]  # float values, or stored bytes [rows, bytes] and their type

SIZES = {
    "block_count": 2,
    "context_length": 512,
    "embedding_length": 64,
    "feed_forward_length": 128,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
}


def sizes(architecture: str, **changes: Any) -> dict[str, Any]:
    """Metadata of a two-layer model. A change to None leaves the key out; `__` stands for a dot."""
    merged = SIZES | {key.replace("__", "."): value for key, value in changes.items()}
    return {f"{architecture}.{key}": value for key, value in merged.items() if value is not None}


def write_gguf(
    path: Path, architecture: str, metadata: Mapping[str, Any] = {}, tensors: Mapping[str, Tensor] | None = None
) -> Path:
    """Integers are stored as u32, floats as f32. Without `tensors`, an embedding [96, 64] alone."""
    writer = GGUFWriter(path, architecture)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, list(value))
    if tensors is None:
        tensors = {"token_embd.weight": np.zeros((96, 64), np.float32)}
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            stored, kind = tensor
            writer.add_tensor(name, stored, raw_dtype=GGMLQuantizationType[kind])
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
