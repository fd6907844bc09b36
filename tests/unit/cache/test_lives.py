"""Lives of cached blocks: what a scripted clock says of blocks whose uses are known."""

from __future__ import annotations

import itertools

import pytest

from octavo.cache.lives import BlockLives
from octavo.cache.manager import CacheManager
from octavo.cache.pool import BlockPool
from octavo.core.messages import BlockLife
from tests.simulation import make_engine, submit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def watched_pool(num_slabs: int, *per_slab: int, share: float = 1.0) -> tuple[BlockPool, BlockLives, Clock]:
    clock = Clock()
    lives = BlockLives(share, clock)
    pool = BlockPool(num_slabs + 1, per_slab or (1,), lives.evicted)
    pool.lives = lives
    return pool, lives, clock


def test_a_block_that_is_hit_and_evicted() -> None:
    pool, lives, clock = watched_pool(1)
    clock.now = 10.0
    (block,) = pool.take([1])[0]
    block.hash = b"x"
    pool.release([block])
    for clock.now in (11.0, 13.0, 18.0):
        pool.touch([block])
        pool.release([block])
    clock.now = 20.0
    assert lives.take() is None
    pool.take([1])
    assert lives.take() == [BlockLife(lifetime=10.0, idle=2.0, reuse_gaps=[2.0, 5.0])]
    assert lives.take() is None


def test_a_block_that_nobody_finds_again_is_idle_all_its_life() -> None:
    pool, lives, clock = watched_pool(1)
    (block,) = pool.take([1])[0]
    block.hash = b"x"
    clock.now = 3.0  # its request runs so long
    pool.release([block])
    clock.now = 4.0
    pool.take([1])
    assert lives.take() == [BlockLife(4.0, 4.0, [])]


def test_what_was_never_cached_has_no_life_and_leaves_nothing() -> None:
    pool, lives, clock = watched_pool(1)
    (block,) = pool.take([1])[0]
    pool.release([block])
    clock.now = 5.0
    (block,) = pool.take([1])[0]
    block.hash = b"x"
    pool.release([block])
    clock.now = 7.0
    pool.take([1])
    assert lives.take() == [BlockLife(2.0, 2.0, [])]


def test_a_slab_that_changes_groups_ends_the_lives_in_it() -> None:
    pool, lives, clock = watched_pool(1, 2, 1)
    blocks = pool.take([2, 0])[0]
    for block in blocks:
        block.hash = bytes([block.block_id])
    pool.release(blocks)
    clock.now = 1.0
    pool.take([0, 1])
    assert lives.take() == [BlockLife(1.0, 1.0, [])] * 2


def test_the_sample_has_its_share() -> None:
    pool, lives, _ = watched_pool(2000, share=0.1)
    for block in pool.take([2000])[0]:
        block.hash = b"x"
        pool.release([block])
    pool.take([2000])
    ended = lives.take()
    assert ended is not None and 120 < len(ended) < 280


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_engine_reports_them_with_its_steps(share: float) -> None:
    """A cache of eight blocks, three prompts of four full blocks each: the third one's blocks push others out."""
    ticks = itertools.count()
    lives = BlockLives(share, lambda: float(next(ticks))) if share else None
    engine = make_engine(num_slabs=8, lives=lives)
    ended: list[BlockLife] = []
    for name in range(4):
        submit(engine, str(name), [name + 1] * 65, max_tokens=2)
        while engine.has_work():
            stats = engine.step().stats
            ended += (stats.block_lives or ()) if stats is not None else ()
    if share:
        assert len(ended) >= 4 and all(life.lifetime > 0 and life.lifetime == life.idle for life in ended)
    else:
        assert not ended and isinstance(engine.scheduler.cache, CacheManager)
