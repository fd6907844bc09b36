"""The processes in which FlashAttention-4 compiles (flash_compile.py), before anything here has imported torch: their
imports take as long as this process's own, and can begin beside them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from octavo.attention import flash_import
from octavo.config.env import child_environment, compiled_flash_kernels

CHILD = "octavo.attention.flash_child"
EARLY = 2  # that start before a call is known: one for pages as they are, one for wide ones
LEAST_PROCESSORS = 8  # below, a child's imports would take more from the rest than it gives

_early: list[Child] = []


def can_help() -> bool:
    return len(os.sched_getaffinity(0)) >= LEAST_PROCESSORS


def start_early() -> None:
    """Where nothing is compiled yet on this machine, a rehearsal will have work for children. Those that get none end
    by themselves."""
    if not _early and can_help() and flash_import.why_absent() is None and not compiled_flash_kernels():
        _early.extend(Child() for _ in range(EARLY))


def take_early() -> list[Child]:
    """The children that have been started, or new ones."""
    found = _early[:] or [Child() for _ in range(EARLY)]
    _early.clear()
    return found


class Child:
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
