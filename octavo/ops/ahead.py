"""Kernels compiled before they are needed, many at once.

The first launch of a kernel compiles it: Triton, the assembler and, for what launches it, the C compiler, half a second
to three in all, and one kernel after the other. In a rehearsal the same code runs, with the same tensors, but whatever
would be launched is only compiled, on threads. So there is no list of kernels and of their variants to be kept right.

    rehearsal = Rehearsal(device)
    with rehearsal:
        ...                      what will run; results are whatever lay in memory
    rehearsal.wait()             or do something else first

This module imports no Triton: where nothing has, there is nothing to compile.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

MOST_THREADS = 16
THREADS = "octavo-compile"  # how their names begin
_SMALL = range(-(1 << 31), 1 << 31)

_rehearsals: dict[int, Rehearsal] = {}  # by the thread that rehearses
_beside: dict[Hashable, Future[Any]] = {}  # what `compile_beside` was given and nobody has waited for


def kernel_directory(device: torch.device) -> Path | None:
    """Where compiled kernels stay between runs; None where none are compiled."""
    triton = sys.modules.get("triton")
    if device.type == "cpu" or triton is None or triton.knobs.runtime.interpret:
        return None
    return Path(triton.knobs.cache.dir)


def is_rehearsing() -> bool:
    return threading.get_ident() in _rehearsals


def compile_beside(key: Hashable, function: Callable[..., Any], *args: Any) -> None:
    """In a rehearsal, for what is no kernel of Triton's: `function(*args)` on a thread, once for each key. It does run
    on the device, so the tensors must say that there is nothing to do."""
    _rehearsals[threading.get_ident()].submit(key, str(key), function, *args)


def wait_for(key: Hashable) -> None:
    """Until what `compile_beside` was given under this key is compiled, if it was given any."""
    if _beside and (future := _beside.pop(key, None)) is not None:
        future.result()


class Rehearsal:
    """Belongs to one thread, and is used once. What cannot be compiled is logged: whoever launches it will see. With
    `only_compile`, kernels are not made ready to be launched, which needs their device."""

    def __init__(self, device: torch.device, num_threads: int | None = None, only_compile: bool = False) -> None:
        self._device, self._only_compile = device, only_compile
        count = num_threads or min(MOST_THREADS, max(2, len(os.sched_getaffinity(0)) - 1))
        self._pool = ThreadPoolExecutor(count, THREADS, initializer=self._start_thread)
        self._futures: dict[Hashable, Future[Any]] = {}
        self._urgent: list[Hashable] = []
        self.seconds = 0.0  # of compiling, all threads together
        self.failures: list[str] = []

    def __enter__(self) -> Rehearsal:
        assert not _rehearsals, "two rehearsals at once"
        from triton.runtime.jit import JITFunction

        _rehearsals[threading.get_ident()] = self
        self._kernels, self._launch = JITFunction, JITFunction.run
        JITFunction.run = _run_or_compile(self._launch)
        return self

    def __exit__(self, *_: object) -> None:
        self._kernels.run = self._launch
        del _rehearsals[threading.get_ident()]
        self._pool.shutdown(wait=False)

    @property
    def num_kernels(self) -> int:
        return len(self._futures)

    def mark(self) -> None:
        """What was launched until now is urgent: `wait` waits for no more."""
        self._urgent = list(self._futures)

    def wait(self) -> None:
        """For kernels of Triton's; not for what `compile_beside` was given."""
        for key in self._urgent or self._futures:
            if key not in _beside:
                self._futures[key].result()

    def wait_beside(self) -> None:
        """For what `compile_beside` was given, and any other process that compiles it, whose memory counts as used."""
        for key in list(_beside):
            if key in self._futures:
                self._futures[key].result()

    def when_done(self, function: Callable[[], None]) -> None:
        """Calls it on a thread once everything is compiled, if nothing failed. Ends the rehearsal."""
        futures = list(self._futures.values())  # all of which have begun before this one

        def done() -> None:
            for future in futures:
                future.result()
            log.info("%d kernels compiled ahead in %.1f s of all threads together", len(futures), self.seconds)
            if not self.failures:
                function()

        self._pool.submit(done)

    def submit(self, key: Hashable, name: str, function: Callable[..., Any], *args: Any) -> None:
        if key not in self._futures:
            self._futures[key] = _beside[key] = self._pool.submit(self._compile, name, function, *args)

    def take(self, kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """A launch."""
        key = variant(kernel, args, options)
        if key not in self._futures:
            _ = kernel.device_caches[self._device.index or 0]  # made here, or threads would make one each
            self._futures[key] = self._pool.submit(self._compile, kernel.fn.__name__, self._make, kernel, args, options)

    def _make(self, kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        compiled = kernel.warmup(*args, grid=(1,), **options)
        if not self._only_compile:
            _ = compiled.run  # makes the launcher, and loads the kernel

    def _start_thread(self) -> None:
        if self._device.type == "cuda" and torch.cuda.is_available():
            torch.cuda.set_device(self._device)

    def _compile(self, name: str, function: Callable[..., Any], *args: Any) -> None:
        started = time.perf_counter()
        try:
            with torch.inference_mode():
                function(*args)
        except Exception as error:
            self.failures.append(f"{name}: {type(error).__name__}: {error}")
            log.warning("not compiled ahead: %s", self.failures[-1])
        self.seconds += time.perf_counter() - started
        log.debug("%s compiled in %.2f s", name, time.perf_counter() - started)


def _run_or_compile(launch: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        rehearsal = _rehearsals.get(threading.get_ident())
        if rehearsal is None or warmup:
            return launch(self, *args, grid=grid, warmup=warmup, **options)
        rehearsal.take(self, args, options)
        return None

    return run


def variant(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Hashable:
    """What Triton distinguishes of a launch, at least."""
    named = {**dict(zip(kernel.arg_names, args, strict=False)), **options}
    params = {param.name: param for param in kernel.params}
    parts: list[Hashable] = []
    for name, value in named.items():
        param = params.get(name)
        if param is None or param.is_constexpr:
            parts.append((name, repr(value)))
        else:
            is_special = not param.do_not_specialize
            parts.append((name, _kind(value, is_special, is_special and not param.do_not_specialize_on_alignment)))
    return kernel, tuple(parts)


def _kind(value: Any, is_special: bool, by_alignment: bool) -> Hashable:
    if isinstance(value, torch.Tensor):
        return value.dtype, by_alignment and value.data_ptr() % 16 == 0
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value in _SMALL, is_special and value == 1, by_alignment and value % 16 == 0
    if isinstance(value, tuple | list):
        return tuple(_kind(part, is_special, by_alignment) for part in value)
    return type(value).__name__
