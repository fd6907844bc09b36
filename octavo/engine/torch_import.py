"""Imports torch sooner, in a process that is octavo's own: its library is mapped beside other imports, and what only
its compiler needs is left until that is imported.

A third of `import torch` registers how operators compute on the meta device (torch._meta_registrations and what it
imports), in Python. torch's compiler and its fake tensors read that; an engine that starts does not.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

DEFERRED = ("torch._meta_registrations", "torch.distributed._meta_registrations")
_NEEDED_BY = ("torch._dynamo", "torch._inductor")


def map_library() -> None:
    """On a thread: mapping it needs no interpreter lock. Does nothing for builds whose library needs others."""
    found = importlib.util.find_spec("torch")  # imports nothing
    if found is None or found.origin is None:
        return
    folder = Path(found.origin).parent / "lib"
    library = folder / "libtorch_cpu.so"
    if library.is_file() and not (folder / "libtorch_cuda.so").exists():
        threading.Thread(target=_map, args=(library,), name="octavo-torch", daemon=True).start()


def _map(library: Path) -> None:
    try:
        ctypes.CDLL(str(library))
    except OSError:  # then `import torch` says why
        return


def import_torch() -> None:
    """`import torch` without what is DEFERRED, which comes when the compiler is imported. Does nothing more where torch
    has been imported, or does not have it."""
    if "torch" in sys.modules:
        return
    later = _Later()
    sys.meta_path.insert(0, later)
    try:
        importlib.import_module("torch")
    finally:
        later.is_open = False
        for name in later.taken:
            del sys.modules[name]
            parent, _, child = name.rpartition(".")
            if parent in sys.modules and hasattr(sys.modules[parent], child):
                delattr(sys.modules[parent], child)


class _Later(MetaPathFinder, Loader):
    """Gives empty modules for what is deferred while it `is_open`, and afterwards the real ones before what needs
    them."""

    def __init__(self) -> None:
        self.is_open = True
        self.taken: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self.is_open and fullname in DEFERRED:
            self.taken.append(fullname)
            return ModuleSpec(fullname, self)
        if not self.is_open and fullname in _NEEDED_BY:
            sys.meta_path.remove(self)
            for name in self.taken:
                importlib.import_module(name)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is in it."""
