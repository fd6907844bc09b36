"""Messages survive the way through bytes; anything else is refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import octavo
from octavo.core import wire
from octavo.core.messages import (
    Abort,
    CoreFacts,
    CoreStats,
    CoreStatus,
    Delta,
    Failed,
    Goodbye,
    Hello,
    LaunchCore,
    LaunchFrontend,
    Query,
    Ready,
    Reply,
    StepOutputs,
    StepStats,
    Stop,
    Submit,
)
from octavo.core.outputs import TokenLogprobs
from octavo.core.params import RequestOutputKind, SamplingParams

PARAMS = SamplingParams(
    n=1, temperature=0.5, stop=["END"], stop_token_ids=[3], max_tokens=None, seed=-5, logprobs=2,
    output_kind=RequestOutputKind.FINAL_ONLY,
)  # fmt: skip
SUBMIT = Submit("a-1", [1, 2, 3], PARAMS, 12.5, -3, "salt", [0, 2], 2**63 - 1)
FACTS = CoreFacts(4096, 128, 16, [100, 7], 1 << 40, 1.5)

TO_CORE: list[Any] = [Hello(2, 77, b"\x00\xff"), SUBMIT, Abort(["a", "b"]), Query(7, "stats"), Goodbye()]
TO_FRONTEND: list[Any] = [
    StepOutputs(
        [
            Delta("a", [1], logprobs=[TokenLogprobs([1, 2], [-0.5, -1.0], [1, 2])], num_cached_tokens=16),
            Delta("b", [], 3, "END", "what happened", error_type="InvalidRequest", error_field="prompt"),
        ],
        StepStats(num_running=3, cache_usage=0.25),
        ["a", "c"],
    ),
    StepOutputs(),
    Reply(7, True),
    Reply(8, CoreStats(1, 2, 100, 3, [0, 1])),
]
CONTROL: list[Any] = [
    LaunchCore(b"\x80", "ipc:///tmp/x", b"token", 20),
    LaunchFrontend(1, 4, b"\x80", b"settings", b"token", 10),
    Ready("tcp://127.0.0.1:5555", FACTS),
    Failed("OutOfMemory", "by 3 GiB"),
    Stop(),
    CoreStatus("restarting", 3, "killed by SIGKILL", facts=FACTS),
]


@pytest.mark.parametrize("message", TO_CORE, ids=lambda m: type(m).__name__)
def test_messages_to_the_core(message: Any) -> None:
    assert wire.decode_to_core(wire.encode(message)) == message


@pytest.mark.parametrize("message", TO_FRONTEND, ids=lambda m: type(m).__name__)
def test_messages_to_a_front_end(message: Any) -> None:
    assert wire.decode_to_frontend(wire.encode(message)) == message


@pytest.mark.parametrize("message", CONTROL, ids=lambda m: type(m).__name__)
def test_control_messages(message: Any) -> None:
    assert wire.decode_control(wire.encode(message)) == message


def test_each_reader_takes_its_own_kind_only() -> None:
    for read, others in (
        (wire.decode_to_core, TO_FRONTEND + CONTROL),
        (wire.decode_to_frontend, TO_CORE + CONTROL),
        (wire.decode_control, TO_CORE + TO_FRONTEND),
    ):
        for message in others:
            with pytest.raises(wire.MalformedMessage):
                read(wire.encode(message))


def broken(**changes: Any) -> bytes:
    """A Submit with fields replaced, by position or inside its parameters."""
    fields = msgspec.msgpack.decode(wire.encode(SUBMIT))
    names = ["tag", *Submit.__struct_fields__]
    for name, value in changes.items():
        if name in names:
            fields[names.index(name)] = value
        else:
            fields[names.index("params")][name] = value
    return msgspec.msgpack.encode(fields)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"top_p": 0}, "top_p"),
        ({"no_such_parameter": 1}, "no_such_parameter"),
        ({"prompt_token_ids": [1, "2"]}, "Expected `int`"),
        ({"prompt_token_ids": "123"}, "Expected `array`"),
        ({"arrival_time": None}, "Expected `float`"),
        ({"params": [1]}, "Expected `object`"),
    ],
)
def test_a_wrong_field_is_named_and_so_is_the_request(changes: dict[str, Any], says: str) -> None:
    data = broken(**changes)
    with pytest.raises(wire.MalformedMessage, match=says):
        wire.decode_to_core(data)
    assert wire.submitted_id(data) == "a-1"


def test_a_request_is_named_only_where_there_is_one() -> None:
    assert wire.submitted_id(wire.encode(Abort(["a"]))) is None
    assert wire.submitted_id(broken(request_id=5)) is None
    assert wire.submitted_id(b"") is None


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.just(b"\x91" * 100_000), st.just(b"\x93\xa6Submit\xa3\xff\xff\xff\x01")))
def test_arbitrary_bytes_are_refused_in_order(data: bytes) -> None:
    for read in (wire.decode_to_core, wire.decode_to_frontend, wire.decode_control):
        with pytest.raises(wire.MalformedMessage):
            read(data)
    assert wire.submitted_id(data) is None


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(TO_CORE), st.data())
def test_a_damaged_message_is_refused_or_another_valid_one(message: Any, data: st.DataObject) -> None:
    good = bytearray(wire.encode(message))
    good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        again = wire.decode_to_core(bytes(good))
    except wire.MalformedMessage:
        return
    assert wire.decode_to_core(wire.encode(again)) == again


def test_nothing_in_octavo_unpickles() -> None:
    """Between processes there are typed messages, which cannot run code."""
    imports = re.compile(r"^\s*(?:import|from) (?:pickle|marshal|shelve|cloudpickle|dill)\b", re.MULTILINE)
    package = Path(octavo.__file__).parent
    assert not [path for path in package.rglob("*.py") if imports.search(path.read_text(encoding="utf-8"))]
