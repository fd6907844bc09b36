"""A process that octavo starts, and the channel to it: one socket pair, whose end tells each side of the other's death.

The child is a fresh interpreter. It gets no live object, only messages (`core/wire.py`).
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import octavo
from octavo.config.env import child_environment
from octavo.core.wire import Control, MalformedMessage, decode_control, encode

_HEADER = struct.Struct("<I")  # bytes of the message behind it
_MAX_BYTES = 1 << 28


class Channel:
    """Whole messages over a stream socket. One thread receives; any may send."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._sending = threading.Lock()

    def fileno(self) -> int:
        return self._stream.fileno()

    def send(self, message: Control) -> bool:
        """False: the other end is gone."""
        data = encode(message)
        try:
            with self._sending:
                self._stream.sendall(_HEADER.pack(len(data)) + data)
        except OSError:
            return False
        return True

    def receive(self) -> Control | None:
        """Waits. None: the other end is gone. Raises MalformedMessage."""
        header = self._read(_HEADER.size)
        if header is None:
            return None
        (size,) = _HEADER.unpack(header)
        if size > _MAX_BYTES:
            raise MalformedMessage(f"a message of {size} bytes")
        data = self._read(size)
        return None if data is None else decode_control(data)

    def close(self) -> None:
        self._stream.close()

    def _read(self, size: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < size:
            try:
                part = self._stream.recv(min(size - len(parts), 1 << 20))
            except OSError:
                return None
            if not part:
                return None
            parts += part
        return bytes(parts)


class Child:
    """A started process. Whoever started it waits for it."""

    def __init__(self, process: subprocess.Popen[bytes], channel: Channel) -> None:
        self.process, self.channel = process, channel

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self, seconds: float) -> None:
        """Waits so long, then kills. Closes the channel."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.channel.close()

    def why_ended(self) -> str:
        """In words, once it has ended."""
        code = self.process.wait()
        if code >= 0:
            return f"exit status {code}"
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"


def start_child(module: str, arguments: Sequence[str] = (), pass_fds: Sequence[int] = ()) -> Child:
    """Starts `python -m module FD ARGUMENTS`; FD is its end of the channel."""
    ours, theirs = socket.socketpair()
    with theirs:
        process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(theirs.fileno()), *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), *pass_fds),
            env=child_environment(**_search_path()),
        )
    return Child(process, Channel(ours))


def parent_channel(fd: int) -> Channel:
    """The child's end."""
    stream = socket.socket(fileno=fd)
    stream.set_inheritable(False)
    return Channel(stream)


def _search_path() -> dict[str, str]:
    """The child must find this very octavo, installed or not."""
    root = str(Path(octavo.__file__).resolve().parent.parent)
    paths: dict[str, Any] = sysconfig.get_paths()
    if root in (paths.get("purelib"), paths.get("platlib")):
        return {}
    given = child_environment().get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([root, given] if given else [root])}
