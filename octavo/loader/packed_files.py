"""Packed weights on disk: a later start maps them, and packs nothing.

A file belongs to what its name is a digest of: the checkpoint's files, what the model makes of their tensors, and the
code that packs them. Whatever changes there makes another name, and the old file goes when room is needed.

    magic, 8 bytes | bytes of the description, u64 | its sha256 | description, JSON | padding | weights, each from 64 on

The description has each weight's name, place and checksum. A file that does not fit it is removed and made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import shutil
import struct
import tempfile
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import octavo
from octavo.loader.assign import ExpectedWeight
from octavo.quantization.packed import PackedForm

_log = logging.getLogger(__name__)

_MAGIC = b"OCTAVOPK"
_HEAD = struct.Struct("<8sQ32s")
_ALIGNMENT = 64
_EDGE_BYTES = 1 << 20  # that are read of a checkpoint's file at both ends
_POPULATE_READ = 22  # madvise: Linux 5.14, not yet among Python's names
_SUFFIX, _INCOMING = ".packed", ".incoming-"
_STALE_SECONDS = 3600.0  # a file that is still incoming after that never will be there

Parameters = Mapping[str, torch.nn.Parameter]


@dataclass(frozen=True)
class PackedFiles:
    """A directory of them. `limit` is for all files together, in bytes; nothing is written above it. `note` gets the
    name of the file that was used."""

    directory: Path
    limit: int
    note: Path | None = None

    def take(self, name: str, parameters: Parameters) -> int:
        """Puts kept weights into the packed ones of the parameters, if there are such of that name. Bytes; 0: none."""
        path = self.directory / f"{name}{_SUFFIX}"
        forms = packed_forms(parameters)
        try:
            found = dict(_mapped(path, {key: form.weight.data.nbytes for key, form in forms.items()}))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("packed weights in %s cannot be used, they are made anew: %s", path, error)
            with suppress(OSError):
                path.unlink()
            return 0
        for key, data in found.items():
            forms[key].adopt(parameters[key], data)
        with suppress(OSError):
            os.utime(path)  # it was used
            self._take_note(path)
        return sum(data.nbytes for data in found.values())

    def put(self, name: str, parameters: Parameters) -> threading.Thread | None:
        """Keeps the parameters' packed weights, on a thread that nobody need wait for; None where there is no room.
        What cannot be written is said in the log alone."""
        weights = {key: form.weight.data for key, form in packed_forms(parameters).items()}
        num_bytes = sum(data.nbytes for data in weights.values())
        if not weights or num_bytes > self.limit:
            return None
        thread = threading.Thread(target=self._put, args=(name, weights, num_bytes), name="octavo-packed-weights")
        thread.start()
        return thread

    def _put(self, name: str, weights: Mapping[str, torch.Tensor], num_bytes: int) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._make_room(num_bytes)
            if shutil.disk_usage(self.directory).free < 2 * num_bytes:
                _log.info("packed weights are not kept: the disk of %s is nearly full", self.directory)
                return
            path = self.directory / f"{name}{_SUFFIX}"
            with tempfile.NamedTemporaryFile(dir=self.directory, prefix=_INCOMING, delete=False) as file:
                try:
                    _write(file, weights)
                    file.close()
                    os.replace(file.name, path)  # whole, or not at all
                    self._take_note(path)
                except BaseException:
                    os.unlink(file.name)
                    raise
            _log.info("packed weights, %d MiB, are kept in %s for later starts", num_bytes >> 20, path)
        except OSError as error:
            _log.info("packed weights are not kept: %s", error)

    def _take_note(self, path: Path) -> None:
        if self.note is not None:
            self.note.write_text(path.name, encoding="utf-8")

    def _make_room(self, num_bytes: int) -> None:
        """Removes files that were not used for longest, and what an ended process has left half written."""
        for path in self.directory.glob(f"{_INCOMING}*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
        kept = []
        for path in self.directory.glob(f"*{_SUFFIX}"):
            with suppress(OSError):
                kept.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(size for _, size, _ in kept) + num_bytes
        for _, size, path in sorted(kept):
            if total <= self.limit:
                return
            with suppress(OSError):
                path.unlink()
                total -= size


def packed_forms(parameters: Parameters) -> dict[str, PackedForm]:
    forms = {name: getattr(parameter, "form", None) for name, parameter in parameters.items()}
    return {name: form for name, form in forms.items() if isinstance(form, PackedForm)}


def name_of(files: Iterable[Path], parameters: Parameters, expected: Iterable[ExpectedWeight]) -> str:
    """A digest of everything that the packed weights depend on. Of the checkpoint's files: size, time of the last
    change, and the first and last MiB."""
    from octavo.ops.cpu.packing import layout  # absent where nothing was compiled, and so nothing packed

    what: list[Any] = [octavo.__version__, layout(), _code()]
    what += [[key, form.weight.in_features, form.weight.parts] for key, form in packed_forms(parameters).items()]
    what += [[weight.name, weight.shape, str(weight.dtype)] for weight in expected]
    digest = hashlib.sha256(json.dumps(what).encode())
    for path in files:
        found = path.stat()
        digest.update(struct.pack("<QQ", found.st_size, found.st_mtime_ns))
        with path.open("rb") as file:
            digest.update(file.read(_EDGE_BYTES))
            file.seek(max(0, found.st_size - _EDGE_BYTES))
            digest.update(file.read(_EDGE_BYTES))
    return digest.hexdigest()[:40]


def _code() -> str:
    """Of the modules that decide what bytes get where."""
    root = Path(octavo.__file__).parent
    digest = hashlib.sha256()
    for name in ("loader/files.py", "loader/packed_files.py", "quantization/packed.py", "ops/packed.py"):
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def _write(file: Any, weights: Mapping[str, torch.Tensor]) -> None:
    from octavo.ops.cpu.packing import checksum

    place = 0
    entries: list[tuple[str, int, int, int]] = []
    for name, data in weights.items():
        entries.append((name, place, data.nbytes, checksum(data)))
        place += -(-data.nbytes // _ALIGNMENT) * _ALIGNMENT
    description = json.dumps({"bytes": place, "weights": entries}).encode()
    start = _start(len(description))
    file.write(_HEAD.pack(_MAGIC, len(description), hashlib.sha256(description).digest()) + description)
    for (_, offset, _, _), data in zip(entries, weights.values(), strict=True):
        file.seek(start + offset)
        file.write(data.numpy().data)
    file.truncate(start + place)


def _start(description_bytes: int) -> int:
    return -(-(_HEAD.size + description_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE


def _mapped(path: Path, wanted: Mapping[str, int]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each weight that is wanted, by name -> bytes. Raises ValueError and others for a file that is not whole."""
    from octavo.ops.cpu.packing import checksum

    with path.open("rb") as file:
        magic, size, digest = _HEAD.unpack(_exactly(file, _HEAD.size))
        if magic != _MAGIC or size > os.fstat(file.fileno()).st_size:
            raise ValueError("it is no such file")
        description = _exactly(file, size)
        if hashlib.sha256(description).digest() != digest:
            raise ValueError("its description is damaged")
        described = json.loads(description)
        if os.fstat(file.fileno()).st_size != _start(size) + described["bytes"]:
            raise ValueError("it is cut off")
        # read-only: pages are those of the file, the same in every process
        data = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    with suppress(OSError, ValueError):
        data.madvise(_POPULATE_READ)
    entries: Sequence[tuple[str, int, int, int]] = described["weights"]
    if {name: num_bytes for name, _, num_bytes, _ in entries} != wanted:
        raise ValueError("it has other weights")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        whole = torch.frombuffer(data, dtype=torch.uint8, offset=_start(size)) if entries else torch.empty(0)
    for name, offset, num_bytes, expected in entries:
        weight = whole[offset : offset + num_bytes]
        if checksum(weight) != expected:
            raise ValueError(f"{name} in it is damaged")
        yield name, weight


def _exactly(file: Any, count: int) -> bytes:
    found: bytes = file.read(count)
    if len(found) != count:
        raise ValueError("it is cut off")
    return found
