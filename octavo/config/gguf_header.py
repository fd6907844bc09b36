"""Reads the head of a GGUF file: metadata and where each tensor lies. Tensor data is `loader/files.py`'s.

Format: the GGUF specification, versions 2 and 3, little-endian
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

    magic "GGUF" | version u32 | tensor count u64 | metadata count u64
    metadata:  key string | type u32 | value                       strings are a u64 length and UTF-8 bytes
    tensors:   name string | dimensions u32 | extents u64[] | type u32 | offset u64
    padding to `general.alignment` | data; tensor offsets count from here

Arrays (a vocabulary has 262,144 strings) are stepped over and decoded only when asked for.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from octavo.errors import UnsupportedModel, WeightError

MAGIC = b"GGUF"


class BlockType(NamedTuple):
    """A ggml tensor type: `block_size` values are stored together in `block_bytes` bytes."""

    name: str
    block_size: int
    block_bytes: int


# ggml type number -> layout (ggml/src/ggml-common.h); the order is that of the enum.
BLOCK_TYPES: dict[int, BlockType] = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    30: BlockType("BF16", 1, 2),
}

# Known by number but not read; only for the error.
_UNREAD_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip

_STRING, _ARRAY = 8, 9
# metadata type number -> struct / array code
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class TensorInfo(NamedTuple):
    """One tensor of the file. `shape` is row-major: ggml's first extent is the last here."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int  # bytes from the start of the file
    nbytes: int

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


class _ArrayPlace(NamedTuple):
    element_type: int
    length: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """The head of one file. `metadata` has the scalars and strings; `array()` decodes an array."""

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    _arrays: dict[str, _ArrayPlace] = field(repr=False)

    @cached_property
    def tensor_by_name(self) -> dict[str, TensorInfo]:
        return {tensor.name: tensor for tensor in self.tensors}

    def has_array(self, key: str) -> bool:
        return key in self._arrays

    def array(self, key: str) -> list[Any]:
        """The array stored under `key`. Raises KeyError if there is none."""
        place = self._arrays[key]
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(data, self.path, place.offset).array_values(place.element_type, place.length)

    def read_bytes(self, tensor: TensorInfo) -> bytes:
        """The stored bytes of a (small) tensor."""
        with self.path.open("rb") as file:
            file.seek(tensor.offset)
            stored = file.read(tensor.nbytes)
        if len(stored) != tensor.nbytes:
            raise truncated(self.path, tensor.end, tensor.offset + len(stored))
        return stored


def truncated(path: Path, expected: int, actual: int) -> WeightError:
    return WeightError(f"{path} is truncated: it should have {expected:,} bytes and has {actual:,}. Fetch it again.")


def read_header(path: Path) -> GgufHeader:
    """Read the head of the GGUF file at `path`.

    Raises UnsupportedModel for another format, version or tensor type, WeightError for a file cut off in its head.
    """
    found = path.stat()
    return _read_header(path, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=4)  # a start asks several times, and stepping over a vocabulary takes a while
def _read_header(path: Path, *version: int) -> GgufHeader:
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != MAGIC:
            raise UnsupportedModel(f"{path} is not a GGUF file: it begins with {magic!r}, not {MAGIC!r}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Cursor(data, path, 4))


def _parse(cursor: _Cursor) -> GgufHeader:
    path = cursor.path
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise UnsupportedModel(f"{path} has GGUF version {version}; octavo reads versions 2 and 3, little-endian")
    num_tensors, num_metadata = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    arrays: dict[str, _ArrayPlace] = {}
    for _ in range(num_metadata):
        key, kind = cursor.string(), cursor.scalar("I")
        if kind == _ARRAY:
            element_type, count = cursor.scalar("I"), cursor.scalar("Q")
            arrays[key] = _ArrayPlace(element_type, count, cursor.position)
            cursor.skip_array(element_type, count)
        else:
            metadata[key] = cursor.value(kind)
    found = [cursor.tensor() for _ in range(num_tensors)]
    alignment = int(metadata.get("general.alignment", 32))
    data_start = -(-cursor.position // alignment) * alignment
    tensors = tuple(tensor._replace(offset=tensor.offset + data_start) for tensor in found)
    return GgufHeader(path, version, metadata, tensors, arrays)


class _Cursor:
    """Walks the head of a mapped file; running past the end means that the file is cut off."""

    def __init__(self, data: mmap.mmap, path: Path, position: int) -> None:
        self.data, self.path, self.position = data, path, position

    def _advance(self, count: int) -> int:
        start = self.position
        if start + count > len(self.data):
            raise truncated(self.path, start + count, len(self.data))
        self.position = start + count
        return start

    def scalar(self, code: str) -> Any:
        code = "<" + code
        return struct.unpack_from(code, self.data, self._advance(struct.calcsize(code)))[0]

    def string(self) -> str:
        length = self.scalar("Q")
        start = self._advance(length)
        return self.data[start : start + length].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        return self.string() if kind == _STRING else self.scalar(self._code(kind))

    def _code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise UnsupportedModel(f"{self.path} has metadata of the unknown type {kind} at byte {self.position:,}")
        return _SCALARS[kind]

    def skip_array(self, element_type: int, count: int) -> None:
        if element_type != _STRING:
            self._advance(struct.calcsize("<" + self._code(element_type)) * count)
            return
        data, position, unpack = self.data, self.position, struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                position += 8 + unpack(data, position)[0]
        except struct.error:
            raise truncated(self.path, position + 8, len(data)) from None
        self.position = position
        self._advance(0)

    def array_values(self, element_type: int, count: int) -> list[Any]:
        if element_type == _STRING:
            return self._strings(count)
        code = self._code(element_type)
        start = self._advance(struct.calcsize("<" + code) * count)
        stored = self.data[start : self.position]
        if code == "?":
            return [byte != 0 for byte in stored]
        return list(struct.unpack(f"<{count}{code}", stored))

    def _strings(self, count: int) -> list[str]:
        begin = self.position
        self.skip_array(_STRING, count)
        stored = self.data[begin : self.position]
        unpack, position, values = struct.Struct("<Q").unpack_from, 0, []
        for _ in range(count):
            end = position + 8 + unpack(stored, position)[0]
            values.append(stored[position + 8 : end].decode("utf-8", errors="replace"))
            position = end
        return values

    def tensor(self) -> TensorInfo:
        name = self.string()
        num_dimensions = self.scalar("I")
        shape = tuple(self.scalar("Q") for _ in range(num_dimensions))[::-1]
        number, offset = self.scalar("I"), self.scalar("Q")
        if number not in BLOCK_TYPES:
            readable = ", ".join(block.name for block in BLOCK_TYPES.values())
            raise UnsupportedModel(
                f"{self.path}: tensor {name} is stored as {_UNREAD_TYPES.get(number, f'ggml type {number}')}; "
                f"octavo reads {readable}"
            )
        type_name, block_size, block_bytes = BLOCK_TYPES[number]
        if shape and shape[-1] % block_size:
            raise WeightError(
                f"{self.path}: tensor {name} of shape {list(shape)} is stored as {type_name}, whose rows are "
                f"multiples of {block_size} values"
            )
        return TensorInfo(name, shape, type_name, offset, prod(shape) // block_size * block_bytes)
