"""Has the system read a model's files while torch is imported, where they are not in memory yet."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from octavo.config.checkpoint import Checkpoint
from octavo.config.env import cache_directory

_PIECE = 64 << 20  # bytes asked for at a time


def packed_directory() -> Path:
    """Where packed weights are kept (loader/packed_files.py)."""
    return cache_directory() / "packed"


def note_of_last(checkpoint: Path) -> Path:
    """A file with the name of the packed weights that were last used for a checkpoint: a hint and no more."""
    return packed_directory() / f"{hashlib.sha256(str(checkpoint.absolute()).encode()).hexdigest()[:40]}.last"


def files_to_read(checkpoint: Checkpoint) -> list[Path]:
    """What a start is going to read: the packed weights if there are any, else the checkpoint's own."""
    if checkpoint.path is None or checkpoint.format == "config":
        return []
    with suppress(OSError, ValueError):
        packed = packed_directory() / Path(note_of_last(checkpoint.path).read_text(encoding="utf-8")).name
        if packed.is_file():
            return [packed]
    return [checkpoint.path] if checkpoint.path.is_file() else sorted(checkpoint.path.glob("*.safetensors"))


def read_ahead(files: Sequence[Path], free_bytes: int) -> threading.Thread | None:
    """On a thread. Nothing is done for files that would take more than half of the free memory."""
    with suppress(OSError):
        if hasattr(os, "posix_fadvise") and 0 < sum(path.stat().st_size for path in files) <= free_bytes // 2:
            thread = threading.Thread(target=_read, args=(files,), name="octavo-read-ahead", daemon=True)
            thread.start()
            return thread
    return None


def _read(files: Sequence[Path]) -> None:
    for path in files:
        with suppress(OSError), path.open("rb") as file:
            for start in range(0, os.fstat(file.fileno()).st_size, _PIECE):
                os.posix_fadvise(file.fileno(), start, _PIECE, os.POSIX_FADV_WILLNEED)
