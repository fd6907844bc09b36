"""A front end that does not read gets everything in the end, in as few messages as it has requests."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.messages import BlockLife, Delta, Reply, StepOutputs, StepShare, StepStats
from octavo.core.outputs import TokenLogprobs
from octavo.engine.outbox import Outbox, merge_stats


class Reader:
    """Takes `room` messages, then no more."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.got: list[Any] = []

    def send(self, message: StepOutputs | Reply) -> bool:
        if self.room <= 0:
            return False
        self.room -= 1
        self.got.append(message)
        return True


def row(token_id: int) -> TokenLogprobs:
    return TokenLogprobs([token_id], [-1.0 * token_id], [1])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.booleans()), max_size=40))
def test_nothing_is_lost_or_reordered(events: list[tuple[str, int, bool]]) -> None:
    reader = Reader(0)
    outbox = Outbox(reader.send)
    said: dict[str, list[int]] = {}
    for step, (name, count, makes_room) in enumerate(events):
        reader.room += makes_room
        token_ids = list(range(step, step + count))
        said.setdefault(name, []).extend(token_ids)
        outbox.put(StepOutputs([Delta(name, token_ids, logprobs=[row(i) for i in token_ids])], StepStats()))
    reader.room = 100
    assert outbox.flush() and outbox.is_empty
    heard: dict[str, list[int]] = {}
    for message in reader.got:
        for delta in message.deltas:
            heard.setdefault(delta.request_id, []).extend(delta.token_ids)
            assert delta.logprobs == [row(i) for i in delta.token_ids]
    assert heard == said


def test_what_merges_is_one_delta_a_request() -> None:
    reader = Reader(1)
    outbox = Outbox(reader.send)
    for step in range(500):
        outbox.put(StepOutputs([Delta("a", [step]), Delta("b", [step])], StepStats(num_running=2)))
    outbox.put(StepOutputs([Delta("a", [], 3, None, "no", error_type="X", num_cached_tokens=16)], started=["c"]))
    reader.room = 1
    assert outbox.flush()
    assert len(reader.got) == 2
    last = reader.got[-1]
    assert [len(delta.token_ids) for delta in last.deltas] == [499, 499] and last.started == ["c"]
    ended = last.deltas[0]
    assert (ended.finish_reason, ended.error, ended.error_type, ended.num_cached_tokens) == (3, "no", "X", 16)
    assert last.deltas[1].finish_reason is None


def test_what_was_put_is_left_alone() -> None:
    first = Delta("a", [1])
    outbox = Outbox(lambda message: False)
    outbox.put(StepOutputs([first]))
    outbox.put(StepOutputs([Delta("a", [2])]))
    assert first.token_ids == [1]


def test_replies_go_first_and_are_kept() -> None:
    reader = Reader(0)
    outbox = Outbox(reader.send)
    outbox.put(StepOutputs([Delta("a", [1])]))
    outbox.put_reply(Reply(1, True))
    outbox.put_reply(Reply(2, True))
    reader.room = 10
    assert outbox.flush()
    assert [type(message) for message in reader.got] == [Reply, Reply, StepOutputs]


def test_amounts_add_up_and_gauges_do_not() -> None:
    both = merge_stats(
        StepStats(num_running=5, num_scheduled_tokens=10, num_preempted=1, cache_usage=0.5, step_seconds=0.5),
        StepStats(num_running=3, num_scheduled_tokens=4, num_preempted=2, cache_usage=0.25, step_seconds=0.25),
    )
    assert both == StepStats(
        num_running=3, num_scheduled_tokens=14, num_preempted=3, cache_usage=0.25, step_seconds=0.75, num_steps=2
    )


def test_shares_of_merged_steps_are_put_together_or_left_out() -> None:
    first, second = [StepShare("a", 5, 0, True)], [StepShare("a", 1, 0, False), StepShare("b", 9, 16, True)]
    assert merge_stats(StepStats(shares=first), StepStats(shares=second)).shares == first + second
    assert merge_stats(StepStats(), StepStats(shares=second)).shares is None  # no part may pass for the whole
    many = second * 4096
    assert merge_stats(StepStats(shares=first), StepStats(shares=many)).shares is None


def test_block_lives_of_merged_steps_are_all_there_up_to_a_limit() -> None:
    one, two = BlockLife(1.0, 1.0, []), BlockLife(2.0, 1.0, [0.5])
    assert merge_stats(StepStats(block_lives=[one]), StepStats(block_lives=[two])).block_lives == [one, two]
    assert merge_stats(StepStats(block_lives=[one]), StepStats(num_steps=0)).block_lives == [one]
    assert merge_stats(StepStats(), StepStats()).block_lives is None
    many = merge_stats(StepStats(block_lives=[one] * 8192), StepStats(block_lives=[two] * 9)).block_lives
    assert many == [one] * 8192
