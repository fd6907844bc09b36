"""The channel between a process and its child: whole messages, and the end of the other side is noticed."""

from __future__ import annotations

import os
import signal
import socket
import struct
import tempfile
import threading

import pytest

from octavo.core.messages import CoreStatus, LaunchCore, Stop
from octavo.core.wire import MalformedMessage
from octavo.engine.control import Channel, start_child
from octavo.engine.launch import FIRST_DELAY, _delay, _private_directory


def channels() -> tuple[Channel, Channel, socket.socket]:
    """Two ends, and the raw socket of the first."""
    one, two = socket.socketpair()
    return Channel(one), Channel(two), one


def test_messages_of_any_size_arrive_whole() -> None:
    here, there, _ = channels()
    sent = [Stop(), LaunchCore(b"x" * 3_000_000, "ipc:///a", b"t", 20), CoreStatus("ready", 1)]
    sender = threading.Thread(target=lambda: [here.send(message) for message in sent])  # more than a socket holds
    sender.start()
    assert [there.receive() for _ in sent] == sent
    sender.join()
    here.close()
    assert there.receive() is None
    assert there.send(Stop()) is False
    there.close()


def test_nonsense_is_refused() -> None:
    here, there, raw = channels()
    raw.sendall(struct.pack("<I", 3) + b"\xff\xff\xff")
    with pytest.raises(MalformedMessage):
        there.receive()
    raw.sendall(struct.pack("<I", 2**32 - 1))
    with pytest.raises(MalformedMessage, match="4294967295 bytes"):
        there.receive()
    raw.sendall(b"\x05\x00")  # half a header
    here.close()
    assert there.receive() is None
    there.close()


def test_how_a_child_ended_is_told_in_words() -> None:
    child = start_child("http.server", ["--help"])  # the descriptor it is given comes first: no such port
    child.end(10)
    assert child.why_ended().startswith("exit status")
    child = start_child("asyncio")  # waits for input that never comes, or ends: killed in any case
    child.process.send_signal(signal.SIGKILL)
    child.end(10)
    assert child.why_ended() == "killed by SIGKILL"


def test_the_back_off_doubles_up_to_a_limit() -> None:
    assert [_delay(n) for n in (1, 2, 3, 4)] == [0.0, FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY]
    assert _delay(10_000) == 30.0


def test_the_directory_of_sockets_is_private_and_its_name_short(tmp_path_factory: pytest.TempPathFactory) -> None:
    deep = tmp_path_factory.mktemp("a" * 90)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(deep))
        path = _private_directory()
    try:
        assert os.stat(path).st_mode & 0o777 == 0o700
        assert len(path) < 80 and not list(deep.iterdir())
    finally:
        os.rmdir(path)
