"""The tensors of a checkpoint's files, under their Hugging Face names, memory-mapped and read one at a time.

safetensors (single and sharded) and GGUF; which parameter a tensor belongs to is the weight map's business.
"""

from __future__ import annotations

import json
import mmap
import re
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from octavo.config.checkpoint import Checkpoint, read_json
from octavo.config.gguf_header import BLOCK_TYPES, TensorInfo, read_header, truncated
from octavo.errors import UnsupportedModel, WeightError

_TORCH_TYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_BLOCKS = {block.name: block for block in BLOCK_TYPES.values()}
_CHUNK_VALUES = 1 << 17  # dequantised at a time by one thread: half a MB, so that NumPy's passes stay in cache
_MAX_HEADER_BYTES = 100 << 20  # safetensors' own limit


@dataclass(frozen=True)
class WeightEntry:
    """One tensor that has not been read. The mapped file lives as long as an entry or a tensor read from it."""

    name: str  # Hugging Face name
    shape: tuple[int, ...]
    dtype: str  # as stored: "F32", "BF16", "Q4_1", ...
    nbytes: int  # as stored
    _stored: _Stored
    _reorder: Callable[[Any], Any] | None = None  # puts rows (of a tensor or of raw bytes) in Hugging Face's order
    _offset: float = 0.0  # added to the values

    @property
    def is_quantized(self) -> bool:
        return self.dtype not in _TORCH_TYPES

    def read(self) -> torch.Tensor:
        """The values: float32 if stored quantised, else the stored dtype. May share memory with the mapped file
        (copy-on-write): a caller that keeps it and cares about resident memory copies it."""
        if self.is_quantized:
            values = _dequantized(self._stored.bytes_of_rows(self.shape, self.nbytes), self.dtype, self.shape)
        else:
            values = self._stored.tensor(_TORCH_TYPES[self.dtype], self.shape)
        if self._reorder is not None:
            values = self._reorder(values)
        return values + self._offset if self._offset else values

    def release(self) -> None:
        """Its pages leave this process's memory until they are read again."""
        self._stored.release(self.nbytes)

    def raw(self) -> tuple[np.ndarray, str]:
        """The stored bytes, uint8 [rows, bytes per row], rows in Hugging Face's order, and their type: for kernels
        that compute on quantised blocks. Raises ValueError for a tensor whose values are changed by reading."""
        if self._offset:
            raise ValueError(f"{self.name} is stored with {-self._offset:+g} on its values; use read()")
        rows = self._stored.bytes_of_rows(self.shape, self.nbytes)
        return (self._reorder(rows) if self._reorder is not None else rows), self.dtype


@dataclass(frozen=True)
class _Stored:
    """A place in a mapped file."""

    data: mmap.mmap
    offset: int

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        count = prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self.data, dtype=dtype, count=count, offset=self.offset).reshape(shape)

    def release(self, nbytes: int) -> None:
        first = -(-self.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        whole = (self.offset + nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if whole > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self.data.madvise(mmap.MADV_DONTNEED, first, whole)

    def bytes_of_rows(self, shape: tuple[int, ...], nbytes: int) -> np.ndarray:
        num_rows = prod(shape[:-1])
        return np.frombuffer(self.data, dtype=np.uint8, count=nbytes, offset=self.offset).reshape(num_rows, -1)


class WeightFiles:
    """The tensors of a checkpoint in file order. Use as a context manager, or just iterate: entries keep what they
    need mapped."""

    def __init__(self, entries: list[WeightEntry]) -> None:
        self._entries = entries

    @property
    def total_bytes(self) -> int:
        """Stored bytes of all tensors."""
        return sum(entry.nbytes for entry in self._entries)

    def __iter__(self) -> Iterator[WeightEntry]:
        """When the next one is asked for, the pages of the last are let go: whoever still reads a tensor of it has them
        mapped anew, without what was written to them."""
        for entry in self._entries:
            yield entry
            entry.release()

    def __len__(self) -> int:
        return len(self._entries)

    def __enter__(self) -> WeightFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._entries = []  # the maps close with their last tensor


def weight_files(checkpoint: Checkpoint) -> list[Path]:
    """The files that the tensors are in, in order. Raises WeightError."""
    if checkpoint.path is None or checkpoint.format == "config":
        raise WeightError(f"{checkpoint.source} is a configuration alone: it has no weights to read")
    if checkpoint.format == "gguf":
        return [checkpoint.path]
    index = read_json(checkpoint.path / "model.safetensors.index.json")
    if index is None:
        return [_only_file(checkpoint.path)]
    return [checkpoint.path / name for name in sorted(set(index.get("weight_map", {}).values()))]


def open_weights(checkpoint: Checkpoint) -> WeightFiles:
    """List the tensors of `checkpoint`; nothing is read yet.

    Raises WeightError for a file that is missing, cut off or inconsistent (with expected and actual size).
    """
    if checkpoint.path is None or checkpoint.format == "config":
        raise WeightError(f"{checkpoint.source} is a configuration alone: it has no weights to read")
    if checkpoint.format == "gguf":
        return WeightFiles(list(_gguf_entries(checkpoint)))
    return WeightFiles(list(_safetensors_entries(checkpoint.path)))


# --- safetensors -------------------------------------------------------------------------------------------------
# u64 header length | JSON {name: {dtype, shape, data_offsets: [begin, end]}} | data; offsets count from the data.
# https://github.com/huggingface/safetensors#format


def _safetensors_entries(directory: Path) -> Iterator[WeightEntry]:
    index = read_json(directory / "model.safetensors.index.json")
    if index is None:
        yield from _entries_of_file(_only_file(directory))
        return
    file_of = index.get("weight_map")
    if not isinstance(file_of, dict) or not file_of:
        raise WeightError(f"{directory / 'model.safetensors.index.json'} has no weight_map")
    files = list(dict.fromkeys(file_of.values()))
    for name in files:
        if not isinstance(name, str) or Path(name).name != name:
            raise WeightError(f"model.safetensors.index.json of {directory} names {name!r}, which is no file name")
    _require_shards(directory, files, file_of, index)
    for name in files:
        entries = {entry.name: entry for entry in _entries_of_file(directory / name)}
        for tensor, place in file_of.items():
            if place == name and tensor not in entries:
                raise WeightError(f"{directory / name} lacks the tensor {tensor}, which the index says it has")
        yield from (entry for tensor, entry in entries.items() if file_of.get(tensor) == name)


def _require_shards(directory: Path, files: list[str], file_of: dict[str, str], index: dict[str, Any]) -> None:
    missing = [name for name in files if not (directory / name).is_file()]
    if not missing:
        return
    present = sum((directory / name).stat().st_size for name in files if name not in missing)
    total = (index.get("metadata") or {}).get("total_size")
    sizes = f"; the index promises {total:,} bytes in all, {present:,} are here" if isinstance(total, int) else ""
    tensors = sum(place in missing for place in file_of.values())
    raise WeightError(
        f"{directory} lacks {', '.join(missing)} ({len(missing)} of {len(files)} files, {tensors} tensors{sizes})"
    )


def _only_file(directory: Path) -> Path:
    whole = directory / "model.safetensors"
    if whole.is_file():
        return whole
    found = sorted(directory.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found) or "none"
    raise WeightError(
        f"{directory} has neither model.safetensors nor model.safetensors.index.json; .safetensors files: {names}"
    )


def _entries_of_file(path: Path) -> Iterator[WeightEntry]:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise truncated(path, 8, size)
        (header_bytes,) = struct.unpack("<Q", head)
        if header_bytes > _MAX_HEADER_BYTES:
            raise WeightError(f"{path} is not a safetensors file: its header would have {header_bytes:,} bytes")
        if 8 + header_bytes > size:
            raise truncated(path, 8 + header_bytes, size)
        try:
            header = json.loads(file.read(header_bytes))
            header.pop("__metadata__", None)
            places = {name: _place(name, stored, path) for name, stored in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightError(f"{path} is not a safetensors file: its header is damaged ({error})") from error
        start = 8 + header_bytes
        expected = start + max((end for _, _, _, end in places.values()), default=0)
        if size < expected:
            raise truncated(path, expected, size)
        data = _map(file.fileno())
    for name, (dtype, shape, begin, end) in sorted(places.items(), key=lambda item: item[1][2]):
        yield WeightEntry(name, shape, dtype, end - begin, _Stored(data, start + begin))


def _place(name: str, stored: dict[str, Any], path: Path) -> tuple[str, tuple[int, ...], int, int]:
    dtype, shape = stored["dtype"], tuple(int(extent) for extent in stored["shape"])
    begin, end = (int(offset) for offset in stored["data_offsets"])
    if dtype not in _TORCH_TYPES:
        raise UnsupportedModel(f"{path}: tensor {name} is stored as {dtype}; octavo reads {', '.join(_TORCH_TYPES)}")
    needed = prod(shape) * _TORCH_TYPES[dtype].itemsize
    if begin < 0 or end - begin != needed:
        raise WeightError(
            f"{path}: tensor {name} of shape {list(shape)} and type {dtype} needs {needed:,} bytes, "
            f"but has {end - begin:,}"
        )
    return dtype, shape, begin, end


def _map(descriptor: int) -> mmap.mmap:
    # Private and copy-on-write: torch wants writable memory, and no write may reach the file.
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)


# --- GGUF --------------------------------------------------------------------------------------------------------

_OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Gemma 3 has four norms a layer.
_GEMMA_LAYER_NAMES = _LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_FOLDED_INTO_CONFIG = {"rope_freqs.weight"}  # gguf_config turns it into rope_scaling


def _gguf_entries(checkpoint: Checkpoint) -> Iterator[WeightEntry]:
    assert checkpoint.path is not None
    header = read_header(checkpoint.path)
    size = checkpoint.path.stat().st_size
    expected = max((tensor.end for tensor in header.tensors), default=0)
    if size < expected:
        raise truncated(checkpoint.path, expected, size)
    with checkpoint.path.open("rb") as file:
        data = _map(file.fileno())
    architecture = header.metadata.get("general.architecture")
    is_gemma = architecture == "gemma3"
    num_heads = {
        "attn_q": int(checkpoint.config["num_attention_heads"]),
        "attn_k": int(checkpoint.config["num_key_value_heads"]),
    }
    for tensor in sorted(header.tensors, key=lambda tensor: tensor.offset):
        if tensor.name in _FOLDED_INTO_CONFIG:
            continue
        part = tensor.name.split(".")[-2] if "." in tensor.name else ""
        yield WeightEntry(
            _hugging_face_name(tensor, is_gemma, checkpoint.path),
            tensor.shape,
            tensor.type_name,
            tensor.nbytes,
            _Stored(data, tensor.offset),
            # The converter of Llama and Mistral regroups the rows of q and k for its own rotary embedding.
            _rotary_halves(num_heads[part]) if architecture == "llama" and part in num_heads else None,
            # Gemma's norms multiply by 1 + weight; the converter stores the sum.
            -1.0 if is_gemma and tensor.name.endswith("norm.weight") else 0.0,
        )


def _hugging_face_name(tensor: TensorInfo, is_gemma: bool, path: Path) -> str:
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", tensor.name)
    if found:
        layer, part, kind = found.groups()
        names = _OUTER_NAMES if layer is None else _GEMMA_LAYER_NAMES if is_gemma else _LAYER_NAMES
        if part in names:
            return f"{names[part]}.{kind}" if layer is None else f"model.layers.{layer}.{names[part]}.{kind}"
    raise WeightError(f"{path}: the tensor {tensor.name} has no place in a model of this architecture")


def _rotary_halves(num_heads: int) -> Callable[[Any], Any]:
    """Undoes llama.cpp's order of the rows of a head, (pair, half), back to (half, pair)."""

    def reorder(rows: Any) -> Any:
        rest = tuple(rows.shape[1:])
        paired = rows.reshape(num_heads, -1, 2, *rest)
        return paired.swapaxes(1, 2).reshape(-1, *rest)

    return reorder


def _dequantized(rows: np.ndarray, type_name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """float32 values of quantised rows, uint8 [rows, bytes per row]; a few rows at a time on several threads."""
    # here, since it loads much that reading a file needs not
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[type_name]
    block = _BLOCKS[type_name]
    result = torch.empty(shape, dtype=torch.float32)
    flat = result.view(-1).numpy()
    blocks = rows.reshape(-1, block.block_bytes)
    step = max(_CHUNK_VALUES // block.block_size, 1)

    def fill(first: int) -> None:
        # As one long row: the package handles 16 rows at a time, which is slow where rows are short.
        values = dequantize(blocks[first : first + step].reshape(1, -1), kind)
        flat[first * block.block_size : first * block.block_size + values.size] = values.reshape(-1)

    firsts = range(0, len(blocks), step)
    # NumPy lets go of the interpreter lock in the large operations.
    threads = min(torch.get_num_threads(), len(firsts))
    if threads <= 1:
        for first in firsts:
            fill(first)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, firsts))
    return result
