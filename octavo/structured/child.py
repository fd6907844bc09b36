"""A process that compiles for backends that nothing can interrupt: it is ended when a form takes too long or too much
memory, and the next form finds a new one.

    engine --> child   vocabulary, once; then one form at a time
    engine <-- child   Ready once its library is loaded; then for each form the compiled bytes, or what is wrong with it
"""

from __future__ import annotations

import logging
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import Protocol

import msgspec

from octavo.config.env import child_environment
from octavo.core.structured import StructuredOutputsParams
from octavo.structured.grammar import Malformed, Unsupported
from octavo.structured.vocabulary import Vocabulary

try:
    import resource
except ImportError:  # no such limits on this platform
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

START_SECONDS = 120.0  # for the child's imports, which a busy machine does slowly
MEMORY_BYTES = 2 << 30  # that compiling may take, on top of what the libraries do
_LENGTH = struct.Struct("<Q")


class Words(msgspec.Struct, array_like=True, frozen=True):
    """A vocabulary on its way."""

    size: int
    pieces: list[bytes]
    special_ids: list[int]
    eos_token_ids: list[int]


class Answer(msgspec.Struct, array_like=True, frozen=True):
    compiled: bytes = b""
    unsupported: str = ""
    malformed: str = ""


class ByteCompiler(Protocol):
    """The child's half of a backend."""

    def __init__(self, vocabulary: Vocabulary) -> None: ...

    def compile(self, form: StructuredOutputsParams) -> bytes:
        """Raises whatever it likes."""


class CompilerChild:
    """One child at a time, started when it is needed. Thread-safe: forms wait for one another."""

    def __init__(self, home: str, vocabulary: Vocabulary, seconds: float) -> None:
        """`home` is the ByteCompiler as "module:Class"."""
        self._home, self._vocabulary, self._seconds = home, vocabulary, seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._is_closed = False

    def compile(self, form: StructuredOutputsParams) -> bytes:
        """Raises Unsupported, also for what takes too much: another backend may do better. Raises Malformed."""
        with self._lock:
            if self._is_closed:
                raise Unsupported("the engine is shut down")
            if self._process is None or self._process.poll() is not None:
                self._start()
            try:
                self._send(msgspec.msgpack.encode(msgspec.structs.replace(form, thinking=None)))
                answer = msgspec.msgpack.decode(self._receive(self._seconds), type=Answer)
            except TimeoutError:
                self._end()
                raise Unsupported(f"compiling it takes more than {self._seconds:g} s") from None
            except OSError:
                self._end()
                raise Unsupported(f"compiling it takes more than {MEMORY_BYTES >> 30} GiB, or crashes") from None
        if answer.unsupported:
            raise Unsupported(answer.unsupported)
        if answer.malformed:
            raise Malformed(answer.malformed)
        return answer.compiled

    def close(self) -> None:
        """May be called while something compiles: that fails."""
        self._is_closed = True
        self._end()

    def _start(self) -> None:
        self._end()
        ours, theirs = socket.socketpair()
        with theirs:
            root = str(Path(__file__).resolve().parents[2])  # a checkout need not be installed
            self._process = subprocess.Popen(
                [sys.executable, "-m", "octavo.structured.child", str(theirs.fileno()), self._home],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=root,
                env=child_environment(OMP_NUM_THREADS="1"),
            )
        self._socket = ours
        vocabulary = self._vocabulary
        words = Words(
            vocabulary.size, vocabulary.pieces, sorted(vocabulary.special_ids), list(vocabulary.eos_token_ids)
        )
        try:
            self._send(msgspec.msgpack.encode(words))
            self._receive(START_SECONDS)
        except OSError as error:
            self._end()
            raise Unsupported(f"the process that compiles could not be started: {error}") from None

    def _end(self) -> None:
        process, connection = self._process, self._socket
        self._process = self._socket = None
        if process is not None:
            process.kill()
            process.wait()
        if connection is not None:
            connection.close()

    def _send(self, data: bytes) -> None:
        assert self._socket is not None
        self._socket.settimeout(START_SECONDS)
        self._socket.sendall(_LENGTH.pack(len(data)) + data)

    def _receive(self, seconds: float) -> bytes:
        assert self._socket is not None
        deadline = time.monotonic() + seconds
        (length,) = _LENGTH.unpack(read_exactly(self._socket, _LENGTH.size, deadline))
        return read_exactly(self._socket, length, deadline)


def read_exactly(connection: socket.socket, count: int, deadline: float | None) -> bytes:
    """Raises TimeoutError, and ConnectionError where the other end is gone."""
    data = bytearray()
    while len(data) < count:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
        part = connection.recv(min(count - len(data), 1 << 20))
        if not part:
            raise ConnectionResetError("the process has ended")
        data += part
    return bytes(data)


# ---- in the child


def main(arguments: list[str]) -> None:
    connection = socket.socket(fileno=int(arguments[0]))

    def receive() -> bytes:
        (length,) = _LENGTH.unpack(read_exactly(connection, _LENGTH.size, None))
        return read_exactly(connection, length, None)

    def send(answer: Answer) -> None:
        data = msgspec.msgpack.encode(answer)
        connection.sendall(_LENGTH.pack(len(data)) + data)

    with suppress(ConnectionError):
        words = msgspec.msgpack.decode(receive(), type=Words)
        vocabulary = Vocabulary(words.size, words.pieces, frozenset(words.special_ids), tuple(words.eos_token_ids))
        compiler: ByteCompiler = resolve_name(arguments[1])(vocabulary)
        _limit_memory()
        send(Answer())
        while True:
            form = msgspec.msgpack.decode(receive(), type=StructuredOutputsParams)
            try:
                answer = Answer(compiler.compile(form))
            except MemoryError:
                return
            except Malformed as error:
                answer = Answer(malformed=str(error) or "it cannot be read")
            except Exception as error:  # whatever a library raises, it is about this form
                answer = Answer(unsupported=" ".join(str(error).split())[:500] or type(error).__name__)
            send(answer)


def _limit_memory() -> None:
    """What is written to from here on. Address space alone costs nothing, and libraries reserve much of it."""
    if resource is None or not hasattr(resource, "RLIMIT_DATA"):
        return
    used = 0
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                used = int(line.split()[1]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY_BYTES, used + MEMORY_BYTES))


if __name__ == "__main__":
    main(sys.argv[1:])
