"""What the history of reuse concludes from returns."""

from __future__ import annotations

from octavo.cache import reuse
from octavo.cache.reuse import ReuseHistory


def test_it_takes_a_majority_of_late_returns_to_thrash_and_one_of_timely_ones_to_recover():
    history = ReuseHistory()
    for _ in range(100):
        history.vote(True)
        history.vote(True)
        history.vote(False)
    assert not history.is_thrashing
    for _ in range(20):
        history.vote(False)
    assert history.is_thrashing
    for _ in range(20):
        history.vote(True)
    assert not history.is_thrashing


def test_the_first_evicted_of_a_chain_tells_when_it_was_used():
    history = ReuseHistory()
    history.note_evicted(b"end", 7)
    history.note_evicted(b"middle", 6)
    assert history.last_used([b"unknown", b"end", b"middle"]) == 7
    history.note_evicted(b"end", 9)
    assert history.last_used([b"end"]) == 9
    assert history.last_used([b"unknown"]) is None


def test_what_was_evicted_long_ago_is_forgotten(monkeypatch):
    monkeypatch.setattr(reuse, "MAX_EVICTED", 2)
    history = ReuseHistory()
    for name in (b"a", b"b", b"a", b"c"):
        history.note_evicted(name, 1)
    assert history.last_used([b"b"]) is None and history.last_used([b"a"]) == history.last_used([b"c"]) == 1
