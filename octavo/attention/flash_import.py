"""FlashAttention-4's function, imported on a thread of its own: that takes seconds, which weights take as well."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octavo.config.env import keep_compiled_kernels

log = logging.getLogger(__name__)

PACKAGE = "flash_attn.cute"
_BARE = "quack"


def why_absent() -> str | None:
    """None if the package is there, else the reason. Imports nothing."""
    if PACKAGE in sys.modules:
        return None
    spec = importlib.util.find_spec(PACKAGE.partition(".")[0])
    folders = () if spec is None else spec.submodule_search_locations or ()
    if any((Path(folder) / "cute").is_dir() for folder in folders):  # FlashAttention-2 has the same name, and none
        return None
    return "FlashAttention-4 (flash_attn.cute) is not installed"


class FlashImport:
    """`start` as soon as it is known that the function will be needed; `function` waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._function: Callable[..., Any] | None = None
        self._is_done = False
        self.seconds = 0.0

    def start(self) -> None:
        """May be called again."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="octavo-flash-import", daemon=True)
                self._thread.start()

    def function(self) -> Callable[..., Any] | None:
        """None, and once a warning, if it cannot be imported."""
        if not self._is_done:
            self.start()
            assert self._thread is not None
            self._thread.join()
        return self._function

    def _run(self) -> None:
        started = time.perf_counter()
        try:
            self._function = import_flash()
        except Exception as error:  # whatever a foreign package may raise
            log.warning("FlashAttention-4 cannot be imported: %s: %s", type(error).__name__, error)
        self.seconds = time.perf_counter() - started
        self._is_done = True


def import_flash() -> Callable[..., Any]:
    """`flash_attn_varlen_func`, which keeps compiled kernels between runs.

    FlashAttention-4 uses some modules of the package `quack`, whose own __init__ imports torch's compiler for others:
    two thirds of all the time. So those modules are imported without it, where that works.
    """
    keep_compiled_kernels()
    if PACKAGE not in sys.modules and _BARE not in sys.modules:
        try:
            return _import_without_init()
        except Exception as error:
            log.debug("%s is imported whole: %s: %s", _BARE, type(error).__name__, error)
            for name in list(sys.modules):
                if name.startswith((f"{_BARE}.", f"{PACKAGE}.")) or name in (_BARE, PACKAGE):
                    del sys.modules[name]
    return importlib.import_module(PACKAGE).flash_attn_varlen_func


def _import_without_init() -> Callable[..., Any]:
    spec = importlib.util.find_spec(_BARE)
    if spec is None:
        raise ImportError(f"there is no package {_BARE}")
    sys.modules[_BARE] = importlib.util.module_from_spec(spec)  # a package that is not executed
    importlib.import_module(f"{_BARE}.dsl")  # the one module that its __init__ imports for what it does
    function: Callable[..., Any] = importlib.import_module(PACKAGE).flash_attn_varlen_func
    del sys.modules[_BARE]  # whoever imports it from now on gets all of it
    return function
