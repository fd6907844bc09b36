"""Has torch's library mapped beside other imports, which `import torch` then finds done."""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from pathlib import Path


def map_library() -> threading.Thread | None:
    """On a thread, since mapping it needs no interpreter lock. Does nothing for builds whose library needs others.
    OMP_WAIT_POLICY is read here."""
    found = importlib.util.find_spec("torch")  # imports nothing
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "lib"
    library = folder / "libtorch_cpu.so"
    if not library.is_file() or (folder / "libtorch_cuda.so").exists():
        return None
    thread = threading.Thread(target=_map, args=(library,), name="octavo-torch", daemon=True)
    thread.start()
    return thread


def _map(library: Path) -> None:
    try:
        ctypes.CDLL(str(library))
    except OSError:  # then `import torch` says why
        return
