"""The core's loop behind a real socket: whatever a front end does, the others are served and the core is clean."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import zmq

from octavo.core.messages import Abort, CoreStats, Delta, Goodbye, Hello, Query, Reply, StepOutputs, Submit
from octavo.core.params import SamplingParams
from octavo.core.wire import decode_to_frontend, encode
from octavo.engine.core_server import MAX_WATCH, CoreServer, open_router
from tests.unit.engine.scripted import ScriptedCore, echo

TOKEN = b"secret"
VOCAB = 1000


class ServedScript(ScriptedCore):
    """Reports starts, as the core does."""

    def __init__(self) -> None:
        super().__init__(echo)
        self.on_start: Callable[[list[str]], None] = lambda request_ids: None
        self.error: Exception | None = None
        self.flood: list[Delta] = []  # what the request "slow" says, one a step
        self._told: set[str] = set()

    def add(self, submit: Submit) -> None:
        if self.error is not None:
            raise self.error
        super().add(submit)

    def step(self) -> StepOutputs:
        time.sleep(0.0005)
        new = [request_id for request_id in self.requests if request_id not in self._told]
        self._told.update(new)
        if new:
            self.on_start(new)
        if self.flood and "slow" in self.requests:
            said = self.flood.pop(0)
            kept = self.requests.pop("slow")
            outputs = super().step()
            if said.finish_reason is None:
                self.requests["slow"] = kept
            return StepOutputs([*outputs.deltas, said], outputs.stats)
        return super().step()

    def stats(self) -> CoreStats:
        return CoreStats(len(self.requests), 0, 10, len(self.requests))


class Peer:
    """A front end, by hand."""

    def __init__(self, context: Any, address: str, index: int = 0, pid: int | None = None, **options: int) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.set(zmq.IDENTITY, f"peer-{index}".encode())
        self.socket.set(zmq.LINGER, 0)
        for name, value in options.items():
            self.socket.set(getattr(zmq, name), value)
        self.socket.connect(address)
        self.num_queries = 0
        self.deltas: list[Delta] = []
        self.started: list[str] = []
        self.num_messages = 0
        self.send(Hello(index, os.getpid() if pid is None else pid, TOKEN))

    def send(self, message: Any) -> None:
        self.socket.send(encode(message))

    def submit(self, request_id: str, max_tokens: int = 5, prompt: list[int] | None = None) -> None:
        params = SamplingParams(max_tokens=max_tokens, output_kind=1)  # type: ignore[arg-type]
        self.send(Submit(request_id, [1, 2] if prompt is None else prompt, params, 0.0))

    def read(self, until: Callable[[], bool], seconds: float = 5.0) -> None:
        end = time.monotonic() + seconds
        while not until():
            assert self.socket.poll(max(end - time.monotonic(), 0) * 1000), "nothing came"
            message = decode_to_frontend(self.socket.recv())
            self.num_messages += 1
            if isinstance(message, Reply):
                self.reply = message
            else:
                self.deltas += message.deltas
                self.started += message.started

    def ask(self, name: Any, seconds: float = 0.0) -> Any:
        self.num_queries += 1
        number = self.num_queries
        self.reply: Reply | None = None
        self.send(Query(number, name, seconds))
        self.read(lambda: self.reply is not None and self.reply.query_id == number)
        assert self.reply is not None
        return self.reply.value

    def ended(self, request_id: str) -> Delta | None:
        return next((d for d in self.deltas if d.request_id == request_id and d.finish_reason is not None), None)

    def tokens(self, request_id: str) -> list[int]:
        return [token_id for d in self.deltas if d.request_id == request_id for token_id in d.token_ids]

    def wait_for(self, request_id: str) -> Delta:
        self.read(lambda: self.ended(request_id) is not None)
        ended = self.ended(request_id)
        assert ended is not None
        return ended


@contextmanager
def served(tmp_path: Path) -> Iterator[tuple[ServedScript, CoreServer, Callable[..., Peer], threading.Thread]]:
    core = ServedScript()
    context: Any = zmq.Context()
    address = f"ipc://{tmp_path}/s"
    server = CoreServer(core, open_router(context, address), TOKEN, VOCAB)
    thread = threading.Thread(target=server.run)
    thread.start()
    peers: list[Peer] = []

    def connect(index: int = 0, **options: Any) -> Peer:
        peers.append(Peer(context, address, index, **options))
        return peers[-1]

    try:
        yield core, server, connect, thread
    finally:
        server.stop()
        thread.join(5)
        for peer in peers:
            peer.socket.close()
        context.destroy(linger=0)
        assert not thread.is_alive()


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.002)


def test_requests_start_stream_and_end(tmp_path: Path) -> None:
    with served(tmp_path) as (_, _, connect, _):
        peer = connect()
        peer.submit("a", 5)
        assert peer.wait_for("a").finish_reason == 1
        assert peer.tokens("a") == [1, 2, 1, 2, 1] and peer.started == ["a"]
        assert peer.ask("ping") is True and peer.ask("reset_prefix_cache") is True
        assert peer.ask("stats") == CoreStats(0, 0, 10, 0, [0])


def test_front_ends_get_their_own_outputs_and_cannot_abort_others(tmp_path: Path) -> None:
    with served(tmp_path) as (core, _, connect, _):
        one, two = connect(0), connect(1)
        one.submit("a", 400)
        two.submit("b", 5)
        two.wait_for("b")
        assert two.started == ["b"] and {delta.request_id for delta in two.deltas} == {"b"}
        two.send(Abort(["a"]))
        assert two.ask("stats").frontends == [0, 1]
        assert "a" in core.requests
        one.send(Abort(["a"]))
        assert one.ask("stats").num_running == 0


def test_malformed_messages_harm_nobody(tmp_path: Path) -> None:
    with served(tmp_path) as (_, _, connect, _):
        peer = connect()
        peer.submit("good", 300)
        fields = msgspec.msgpack.decode(encode(Submit("bad", [1], SamplingParams(), 0.0)))
        fields[3] = {"temperature": -1}
        for data in (b"", b"\xff", b"\x91" * 5000, encode(Reply(1, True)), msgspec.msgpack.encode(fields)):
            peer.socket.send(data)
        peer.socket.send_multipart([b"two", b"parts"])
        for request_id, prompt in (("outside", [VOCAB]), ("below", [-1]), ("empty", [])):
            peer.submit(request_id, prompt=prompt)
            assert peer.wait_for(request_id).error_type == "InvalidRequest"
        refused = peer.wait_for("bad")
        assert refused.error_type == "InvalidRequest" and "temperature" in str(refused.error)
        assert len(peer.tokens("good")) <= 300 and peer.wait_for("good").finish_reason == 1
        assert len(peer.tokens("good")) == 300


def test_what_the_core_refuses_or_fails_at_comes_back(tmp_path: Path) -> None:
    with served(tmp_path) as (core, _, connect, _):
        peer = connect()
        core.refused.add("no")
        peer.submit("no")
        refused = peer.wait_for("no")
        assert (refused.error, refused.error_type) == ("no is refused", "InvalidRequest")
        core.error = KeyError("a bug")
        peer.submit("unlucky")
        failed = peer.wait_for("unlucky")
        assert "KeyError" in str(failed.error) and failed.error_type is None
        core.error = None
        peer.submit("yes")
        assert peer.wait_for("yes").finish_reason == 1


def test_who_has_no_token_is_not_heard(tmp_path: Path) -> None:
    with served(tmp_path) as (core, _, connect, _):
        stranger = connect(5)
        stranger.send(Goodbye())
        stranger.send(Hello(5, os.getpid(), b"wrong"))
        stranger.submit("x")
        peer = connect(0)
        peer.submit("a")
        peer.wait_for("a")
        assert peer.ask("stats").frontends == [0]
        assert [submit.request_id for submit in core.added] == ["a"]


def test_a_front_end_that_does_not_read_stops_nobody_and_gets_it_all_merged(tmp_path: Path) -> None:
    with served(tmp_path) as (core, _, connect, _):
        slow, fast = connect(0, RCVHWM=1), connect(1)
        slow.submit("slow")
        slow.wait_for("slow")
        fast.submit("fast", 400)
        fast.read(lambda: bool(fast.deltas))
        chunk, num_chunks = list(range(3000)), 300  # far more than sockets hold
        core.flood = [Delta("slow", chunk) for _ in range(num_chunks - 1)] + [Delta("slow", chunk, 1)]
        slow.deltas, slow.num_messages = [], 0
        slow.submit("slow", 10**6)
        fast.wait_for("fast")
        eventually(lambda: not core.requests)
        slow.wait_for("slow")
        assert slow.tokens("slow") == chunk * num_chunks
        assert slow.num_messages < num_chunks, "nothing was merged"


def test_the_death_of_a_front_end_ends_its_requests_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with served(tmp_path) as (core, _, connect, _):
            peer, dying = connect(0), connect(1, pid=process.pid)
            dying.submit("orphan", 10**6)
            dying.read(lambda: bool(dying.deltas))
            peer.submit("mine", 10**6)
            peer.read(lambda: bool(peer.deltas))
            process.kill()
            eventually(lambda: "orphan" not in core.requests, 1.0)
            assert peer.ask("stats") == CoreStats(1, 0, 10, 1, [0])
            gone = connect(2, pid=process.pid)  # died before it was heard of
            process.wait()
            gone.submit("nobody's")
            peer.send(Abort(["mine"]))
            assert peer.ask("stats").num_running == 0
    finally:
        process.kill()
        process.communicate()


def test_leaving_and_closing_end_requests(tmp_path: Path) -> None:
    with served(tmp_path) as (core, _, connect, _):
        polite, rude, peer = connect(0), connect(1), connect(2)
        for leaving in (polite, rude):
            leaving.submit(f"{leaving is polite}", 10**6)
            leaving.read(lambda leaving=leaving: bool(leaving.deltas))
        polite.send(Goodbye())
        rude.socket.close()
        eventually(lambda: not core.requests, 2.0)
        assert peer.ask("stats").frontends == [2]


def test_draining_finishes_what_was_accepted_and_takes_no_more(tmp_path: Path) -> None:
    with served(tmp_path) as (core, server, connect, thread):
        peer = connect()
        peer.submit("a", 200)
        peer.read(lambda: bool(peer.deltas))
        server.drain()
        peer.submit("late", 5)
        peer.wait_for("a")
        assert len(peer.tokens("a")) == 200
        thread.join(5)
        assert not thread.is_alive()
        assert [submit.request_id for submit in core.added] == ["a"] and peer.ended("late") is None


def test_idle_costs_nothing(tmp_path: Path) -> None:
    with served(tmp_path) as (_, _, connect, thread):
        peer = connect()
        peer.submit("a")
        peer.wait_for("a")
        peer.ask("ping")
        before = _cpu_seconds(thread)
        time.sleep(0.3)
        assert _cpu_seconds(thread) - before < 0.02
        assert peer.ask("ping") is True


def _cpu_seconds(thread: threading.Thread) -> float:
    fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_front_end_watches_for_a_while_at_a_time(tmp_path: Path) -> None:
    with served(tmp_path) as (core, _, connect, _):
        peer = connect()
        assert peer.ask("watch", 5.0) and core.watched_for == 5.0
        assert peer.ask("watch", 1e9) and core.watched_for == MAX_WATCH
