"""A core that dies and comes back: what waited is served, what had begun is told, nobody twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from octavo.core.messages import (
    Abort,
    CoreState,
    CoreStats,
    CoreStatus,
    Delta,
    Goodbye,
    Hello,
    Query,
    Reply,
    StepOutputs,
    Submit,
)
from octavo.core.params import SamplingParams
from octavo.core.wire import decode_to_core, encode
from octavo.engine.process_client import MAX_ATTEMPTS, ProcessClient
from octavo.errors import EngineDead, EngineRestarting, EngineStarting


class Source:
    """Cores by hand: each incarnation is a ROUTER of its own."""

    index, token = 3, b"secret"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.context: Any = zmq.Context()
        self.status = CoreStatus("starting", 1)
        self.callback: Callable[[CoreStatus], None] = lambda status: None
        self.num_stops = self.num_cores = 0
        self.router: Any = None
        self.identity = b""

    def subscribe(self, callback: Callable[[CoreStatus], None]) -> Callable[[], None]:
        self.callback = callback
        callback(self.status)
        return lambda: None

    def stop(self) -> None:
        self.num_stops += 1

    def set(self, state: CoreState, reason: str = "", address: str = "") -> None:
        self.status = CoreStatus(state, self.num_cores, reason, address=address)
        self.callback(self.status)

    def start(self) -> None:
        self.num_cores += 1
        self.router = self.context.socket(zmq.ROUTER)
        address = f"ipc://{self.directory}/{self.num_cores}"
        self.router.bind(address)
        self.set("ready", address=address)

    def die(self) -> None:
        self.router.close(linger=0)
        self.set("restarting", "killed by SIGKILL")

    def hear(self, count: int) -> list[Any]:
        messages = []
        for _ in range(count):
            assert self.router.poll(2000), f"heard only {messages}"
            self.identity, data = self.router.recv_multipart()
            messages.append(decode_to_core(data))
        assert not self.router.poll(20)
        return messages

    def say(self, message: Any) -> None:
        self.router.send_multipart((self.identity, encode(message)))


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    made = Source(tmp_path)
    yield made
    made.context.destroy(linger=0)


@pytest.fixture
def client(source: Source) -> Iterator[ProcessClient]:
    made = ProcessClient(source)
    yield made
    made.shutdown()


def submit(request_id: str) -> Submit:
    return Submit(request_id, [1], SamplingParams(), 0.0)


def told(outputs: StepOutputs) -> list[tuple[str, str | None, str | None]]:
    return [(delta.request_id, delta.error_type, delta.error) for delta in outputs.deltas]


def test_what_is_added_while_the_core_loads_is_sent_in_order(source: Source, client: ProcessClient) -> None:
    for name in "abc":
        client.add(submit(name))
    client.abort(["b"])
    source.start()
    client.receive()
    assert source.hear(3) == [Hello(3, os.getpid(), b"secret"), submit("a"), submit("c")]
    client.add(submit("d"))
    client.abort(["a"])
    assert source.hear(2) == [submit("d"), Abort(["a"])]
    assert client.has_work()


def test_after_a_death_what_waited_goes_on_and_what_had_begun_is_told(source: Source, client: ProcessClient) -> None:
    source.start()
    client.receive()
    for name in ("streaming", "begun", "waiting", "done", "also waiting"):
        client.add(submit(name))
    source.hear(6)
    source.say(StepOutputs([Delta("streaming", [1])], started=["begun", "done"]))
    assert client.step().started == ["begun", "done"]
    source.say(StepOutputs([Delta("done", [1], 1), Delta("streaming", [2])]))  # on its way when the core dies
    assert client._socket is not None and client._socket.poll(2000)
    source.die()
    last = client.step()
    assert told(last) == [("done", None, None), ("streaming", None, None)]  # what got out counts
    failed = client.step()
    assert {(name, kind) for name, kind, _ in told(failed)} == {
        ("streaming", "EngineRestarting"), ("begun", "EngineRestarting")}  # fmt: skip
    assert all("killed by SIGKILL" in str(why) for _, _, why in told(failed))
    assert client.has_work()
    source.start()
    client.receive()
    assert source.hear(3)[1:] == [submit("waiting"), submit("also waiting")]
    source.say(StepOutputs([Delta("waiting", [1], 1), Delta("also waiting", [1], 1)]))
    client.step()
    assert not client.has_work()


def test_a_request_that_outlives_no_core_is_given_up(source: Source, client: ProcessClient) -> None:
    client.add(submit("poison"))
    for _ in range(MAX_ATTEMPTS):
        source.start()
        client.receive()
        assert source.hear(2)[1] == submit("poison")
        source.die()
        client.receive()
    ((name, kind, why),) = told(client.step())
    assert (name, kind) == ("poison", "EngineRestarting") and str(MAX_ATTEMPTS) in str(why)
    assert not client.has_work()


def test_death_for_good_ends_everything(source: Source, client: ProcessClient) -> None:
    client.add(submit("a"))
    source.set("dead", "no memory")
    assert [(name, kind) for name, kind, _ in told(client.step())] == [("a", "EngineDead")]
    assert client.death is not None and "no memory" in str(client.death)
    with pytest.raises(EngineDead, match="no memory"):
        client.add(submit("b"))
    with pytest.raises(EngineDead):
        client.query("stats").result()


def test_queries_are_answered_or_fail(source: Source, client: ProcessClient) -> None:
    with pytest.raises(EngineStarting, match="starting"):
        client.stats()
    source.start()
    client.receive()
    first, second = client.query("stats"), client.query("ping")
    assert source.hear(3)[1:] == [Query(1, "stats"), Query(2, "ping")]
    source.say(Reply(2, True))
    source.say(Reply(1, CoreStats(1, 2, 3, 4)))
    source.say(Reply(9, True))  # nobody's
    assert client._result(first).num_blocks == 3 and client._result(second) is True
    third = client.query("ping")
    source.die()
    client.receive()
    with pytest.raises(EngineRestarting):
        third.result()


def test_nonsense_from_the_core_is_passed_over(source: Source, client: ProcessClient) -> None:
    source.start()
    client.receive()
    client.add(submit("a"))
    source.hear(2)
    for data in (b"", b"\xff\xff", encode(Goodbye())):
        source.router.send_multipart((source.identity, data))
    source.say(StepOutputs([Delta("a", [1], 1)]))
    assert told(client.step()) == [("a", None, None)]


def test_shutdown_says_goodbye_once(source: Source, client: ProcessClient) -> None:
    source.start()
    client.receive()
    client.add(submit("a"))
    source.hear(2)
    waiting = client.query("ping")
    client.shutdown()
    client.shutdown()
    assert source.hear(2) == [Query(1, "ping"), Goodbye()] and source.num_stops == 1
    with pytest.raises(EngineDead):
        waiting.result()
    with pytest.raises(EngineDead):
        client.add(submit("b"))
