"""FlashAttention-4 compiled in processes of their own, at a first start.

Its compiler is Python for seconds, which one process does in turn with Triton's front end and with the rehearsal. A
child (flash_child.py) makes the call that this process is about to make, on zeros, ends, and leaves the kernel in
FlashAttention-4's folder, where this process then finds it as a second start does:

    parent                                        child
    start                                         imports torch and FlashAttention-4: seconds, no device yet
    begin(name, arguments) -> stdin, pickled ->   the call, on zeros
    wait(name)             <- exit status 0 <-    the kernel is on the disk

FlashAttention-4 names a kernel by what it was made of: its own source and its libraries' versions, the device's
architecture, dtypes, head sizes, heads of queries for one of keys, the mask, which arguments there are, and tiles
chosen by these and by the number of query tokens. Not by strides, nor by the number of pages, of which a child gets
FEW_PAGES. If the two should not agree on a name, this process compiles the kernel itself.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch

from octavo.config.env import child_environment

log = logging.getLogger(__name__)

CHILD = "octavo.attention.flash_child"
EARLY = 2  # children that start before a call is known: one for pages as they are, one for wide ones
SECONDS = 120.0  # a call may take
LEAST_PROCESSORS = 8  # below, a child's imports would take more from the rest than it gives
FEW_PAGES = 2
_ALIGNMENT = 16  # bytes: FlashAttention-4 copies what begins elsewhere, and a layout that it cannot load


@dataclass(frozen=True)
class TensorShape:
    """All that matters of a tensor where there is nothing to do."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    offset: int  # elements from an aligned address

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorShape:
        offset = tensor.data_ptr() % _ALIGNMENT // tensor.element_size()
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, offset)

    def zeros(self) -> torch.Tensor:
        """A tensor like that one, of zeros."""
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        memory = torch.zeros(self.offset + last + 1, dtype=self.dtype, device=self.device)
        return memory.as_strided(self.shape, self.stride, self.offset)


def describe(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of a call of `flash_attn_varlen_func`, with a TensorShape for each tensor."""
    found = {name: TensorShape.of(it) if isinstance(it, torch.Tensor) else it for name, it in arguments.items()}
    for name in ("k", "v"):
        pages = found[name]
        found[name] = replace(pages, shape=(min(FEW_PAGES, pages.shape[0]), *pages.shape[1:]))
    return found


def rebuild(described: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments again, where all lengths are zero."""
    return {name: it.zeros() if isinstance(it, TensorShape) else it for name, it in described.items()}


class FlashCompilers:
    """Does nothing until `start` has been called. Each name has a child of its own. `wait` may be called on any thread,
    the others on one."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._idle: list[_Child] = []
        self._busy: dict[Hashable, _Child] = {}
        self._is_started = False

    def start(self) -> None:
        """May be called again."""
        if not self._is_started and len(os.sched_getaffinity(0)) >= LEAST_PROCESSORS:
            self._is_started = True
            self._idle = [_Child() for _ in range(EARLY)]

    def begin(self, name: Hashable, arguments: Mapping[str, Any]) -> None:
        """Has a child compile what this call needs. Once for each name."""
        if self._is_started and name not in self._busy:
            child = self._busy[name] = self._idle.pop() if self._idle else _Child()
            child.send(pickle.dumps(describe(arguments)))

    def wait(self, name: Hashable) -> bool:
        """Until the child of that name has ended: whether it has compiled it. False if there is none."""
        child = self._busy.get(name)
        if child is None:
            return False
        reason = child.wait(self._seconds)
        if reason is not None:
            log.warning("%s was not compiled by a process of its own: %s", name, reason)
        return reason is None

    def close(self) -> None:
        """Ends children that were given nothing to do."""
        while self._idle:
            self._idle.pop().end()


class _Child:
    """Ends when its stdin does, so it outlives nobody."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[2])  # a checkout need not be installed
        path = os.pathsep.join(filter(None, [root, child_environment().get("PYTHONPATH")]))
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-P", "-m", CHILD],
            stdin=subprocess.PIPE,
            stdout=self._said,
            stderr=self._said,
            env=child_environment(PYTHONPATH=path, OMP_NUM_THREADS="1"),
        )

    def send(self, call: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and said why
            self._process.stdin.write(call)
            self._process.stdin.flush()

    def wait(self, seconds: float) -> str | None:
        """Until it has ended, if necessary by force. None if the call was made, or why not."""
        try:
            code = self._process.wait(seconds)
            return None if code == 0 else f"exit status {code}: {self._last_line()}"
        except subprocess.TimeoutExpired:
            return f"it took more than {seconds:g} s: {self._last_line()}"
        finally:
            self.end()

    def _last_line(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    def end(self) -> None:
        """May be called again."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._said.close()
