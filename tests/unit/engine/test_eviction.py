"""What stays when there is not room for all, whatever kind of layer it is kept for."""

from __future__ import annotations

import random

import pytest

from octavo.cache.retention import KeepAll, KeepLatest, KeepWindow
from octavo.core.messages import Submit
from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.engine.engine_core import EngineCore
from tests.simulation import VOCABULARY, check_nothing_leaked, make_engine

SYSTEM = [7] * 16

# pages, slabs that hold what one of the conversations below needs at its end, slabs that a running one takes beside it
KINDS = {
    "attention": (((64, KeepAll()),), 9, 0),
    "window": (((64, KeepWindow(40)),), 7, 0),
    "window and attention": (((64, KeepWindow(40)), (64, KeepAll())), 16, 0),
    "state": (((4096, KeepLatest()),), 1, 4),
    "hybrid": (((640, KeepLatest()), (64, KeepAll())), 2, 4),
}


def visit(engine: EngineCore, prompt: list[int], max_tokens: int) -> tuple[list[int], int]:
    """Output, and how many tokens came from the cache."""
    params = SamplingParams(max_tokens=max_tokens, output_kind=RequestOutputKind.FINAL_ONLY)
    engine.add(Submit("one", list(prompt), params, 0.0))
    while engine.has_work():
        for delta in engine.step().deltas:
            if delta.finish_reason is not None:
                assert delta.error is None
                return delta.token_ids, delta.num_cached_tokens
    raise AssertionError("no answer")


def tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(1, VOCABULARY) for _ in range(count)]


def go_round(engine: EngineCore, num_conversations: int, num_turns: int, seed: int = 0) -> int:
    """Conversations in turn, 16 tokens more each time. Returns how many tokens came from the cache."""
    rng = random.Random(seed)
    histories = [tokens(rng, 32) for _ in range(num_conversations)]
    cached = 0
    for _ in range(num_turns):
        for history in histories:
            history += tokens(rng, 14)
            output, found = visit(engine, history, max_tokens=2)
            history += output
            cached += found
    return cached


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_with_room_for_half_keeps_its_share_of_the_hits(kind):
    pages, each, beside = KINDS[kind]
    all_hits = go_round(make_engine(pages=pages, num_slabs=2000), 20, 7)
    engine = make_engine(pages=pages, num_slabs=10 * each + beside)
    assert go_round(engine, 20, 7) >= 0.4 * all_hits
    check_nothing_leaked(engine)


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_loop_ordinary_chats_find_their_turns_again(kind):
    """Contents that came late to a full cache get their place once the others are no longer visited."""
    pages, each, beside = KINDS[kind]
    engine = make_engine(pages=pages, num_slabs=6 * each + beside)
    go_round(engine, 20, 5)
    assert engine.scheduler.cache.reuse.is_thrashing
    for seed in range(1, 20):
        go_round(engine, 3, 3, seed)
    assert not engine.scheduler.cache.reuse.is_thrashing
    roomy = make_engine(pages=pages, num_slabs=2000)
    assert go_round(engine, 3, 7, seed=20) == go_round(roomy, 3, 7, seed=20)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after_loop", [False, True])
def test_a_hot_system_prompt_outlives_visitors_who_come_once(kind, after_loop):
    pages, each, beside = KINDS[kind]
    rng = random.Random(1)
    engine = make_engine(pages=pages, num_slabs=3 * each + beside)
    if after_loop:
        go_round(engine, 8, 5)
    found = [visit(engine, SYSTEM * 3 + tokens(rng, 60), max_tokens=3)[1] for _ in range(40)]
    assert found[5:] == [48] * 35  # once it is known where they branch, at the latest


def test_what_found_no_room_at_all_is_remembered_and_gets_its_place():
    """Documents of which some are asked about often, and four pages: three are in use, and nothing makes room for a
    copy that would be the first to go."""
    rng = random.Random(3)
    engine = make_engine(pages=KINDS["state"][0], num_slabs=4)
    documents = [tokens(rng, 64) for _ in range(20)]
    popularity = [1 / (i + 1) for i in range(20)]
    found = 0
    for _ in range(200):
        (document,) = rng.choices(documents, popularity)
        found += visit(engine, document + tokens(rng, 20), max_tokens=3)[1]
    assert found >= 2000
