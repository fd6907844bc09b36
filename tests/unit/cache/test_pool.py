"""Blocks and slabs: order of reuse, counting, and memory that moves between groups of very different pages."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.cache.block import EMPTY, KEPT, NEW, Block
from octavo.cache.groups import plan_slabs
from octavo.cache.pool import BlockPool


def make(num_slabs: int, *per_slab: int) -> tuple[BlockPool, list[Block]]:
    evicted: list[Block] = []
    return BlockPool(num_slabs + 1, per_slab or (1,), evicted.append), evicted


def test_reuse_order_is_the_field_s():
    """Two finished requests of a pool of ten: blocks that nobody can find come first, cached chains last, their ends
    before their beginnings."""
    pool, _ = make(10)
    first = pool.take([4])[0]  # blocks 1 to 4, of which 1 to 3 are full
    for block in first[:3]:
        block.hash = bytes([block.block_id])
    pool.touch(first[:3])  # the second request shares them
    second = [*first[:3], *pool.take([1])[0]]
    pool.release(reversed(first))
    pool.release(reversed(second))
    assert [block.block_id for block in pool._free[0]] == [5, 4, 6, 7, 8, 9, 10, 3, 2, 1]


def cached(pool: BlockPool, count: int, name: str, group: int = 0) -> list[Block]:
    demand = [0] * len(pool.blocks_per_slab)
    demand[group] = count
    blocks = pool.take(demand)[group]
    for block in blocks:
        block.hash = f"{name}{block.block_id}".encode()
    return blocks


def test_ranks_go_one_after_the_other_and_each_chain_from_its_end():
    """What is superseded first, then what is new, latest visitor first, then the least recently used; what somebody
    has found is never new."""
    pool, _ = make(10)
    kept, first, second, found, old = (cached(pool, 2, name) for name in ("kept", "first", "second", "found", "old"))
    pool.touch(found)
    for block in found:
        pool.release([block])
    pool.release(reversed(old))
    pool.release(reversed(kept))
    pool.release(reversed(first), NEW)
    pool.release(reversed(second), NEW)
    pool.release(reversed(found), NEW)
    for block in old:
        pool.supersede(block)
    assert list(pool._free[0]) == [*old, *second[::-1], *first[::-1], *kept[::-1], *found[::-1]]
    assert pool.oldest_kept() == kept[1].free_since
    pool.touch(old[:1])
    pool.supersede(old[0])
    pool.release(old[:1], NEW)
    assert old[0].rank == KEPT, "in use, and found again"


def test_a_block_s_past_ends_with_its_content():
    pool, _ = make(1)
    (block,) = cached(pool, 1, "a")
    pool.touch([block])
    pool.release([block, block])
    assert pool.take([1])[0] == [block]
    block.hash = b"b"
    pool.release([block], NEW)
    assert block.rank == NEW


def test_a_group_takes_what_is_new_or_superseded_of_others_before_what_it_keeps_itself():
    pool, evicted = make(3, 4, 1)
    small = cached(pool, 4, "small")
    large = cached(pool, 2, "large", 1)
    pool.release(large)
    pool.release(small, NEW)
    pool.take([0, 1])
    assert set(evicted) == set(small)
    evicted.clear()
    pool.supersede(large[1])
    assert pool.take([1, 0])[0][0].slab.slab_id == large[1].slab.slab_id and evicted == [large[1]]


def test_the_rank_that_goes_next_counts_what_others_would_give():
    pool, _ = make(2, 4, 1)
    assert pool.next_rank(0) == EMPTY, "a slab that nobody owns"
    small, large = cached(pool, 4, "small"), cached(pool, 1, "large", 1)
    assert pool.next_rank(0) == pool.next_rank(1) == KEPT, "nothing is free"
    pool.release(large)
    assert pool.next_rank(0) == KEPT
    pool.release(small[:1], NEW)
    assert pool.next_rank(0) == NEW and pool.next_rank(1) == KEPT, "its slab is in use"
    pool.release(small[1:], NEW)
    assert pool.next_rank(1) == NEW


def test_a_cached_block_is_evicted_only_when_nothing_else_is_left():
    pool, evicted = make(3)
    blocks = pool.take([3])[0]
    blocks[0].hash = b"kept"
    pool.release(reversed(blocks))
    assert pool.take([2])[0] and not evicted
    assert pool.take([1])[0] == [blocks[0]]
    assert evicted == [blocks[0]] and blocks[0].hash is None


def test_block_zero_is_never_given_out():
    pool, _ = make(4, 2, 1)
    taken = pool.take([4, 2])
    assert all(block.block_id > 0 for blocks in taken for block in blocks)
    assert not pool.fits([1, 0]) and not pool.fits([0, 1])


def test_a_slab_returns_when_all_its_blocks_are_free_and_serves_another_group():
    pool, _ = make(2, 64, 1)
    small = pool.take([100, 0])[0]  # two slabs
    assert not pool.fits([0, 1])
    pool.release(small[64:])
    assert pool.fits([0, 1]) and pool.fits([64, 0]) and not pool.fits([1, 1])
    large = pool.take([0, 1])[1]
    assert large[0].slab is not small[0].slab
    pool.release(large)
    pool.release(small[:64])
    assert pool.num_idle_slabs == 2 and pool.usage == 0


def test_the_older_cache_makes_room_whatever_group_it_belongs_to():
    pool, evicted = make(2, 4, 1)
    old = pool.take([4, 0])[0]
    for block in old:
        block.hash = bytes([block.block_id])
    pool.release(old)
    new = pool.take([0, 1])[1]
    new[0].hash = b"new"
    pool.release(new)
    pool.take([0, 1])
    assert {block.block_id for block in evicted} == {block.block_id for block in old}


def test_fits_counts_hits_that_wake_a_slab():
    pool, _ = make(2, 4, 1)
    blocks = pool.take([4, 0])[0]
    for block in blocks:
        block.hash = bytes([block.block_id])
    pool.release(blocks)
    assert pool.fits([0, 2])
    assert not pool.fits([0, 2], touched=blocks[:1])
    assert pool.fits([3, 1], touched=blocks[:1])
    assert not pool.fits([4, 1], touched=blocks[:1])


@settings(max_examples=150, deadline=None)
@given(
    per_slab=st.sampled_from([(1,), (64, 1), (5, 1, 3), (1, 1)]),
    num_slabs=st.integers(1, 12),
    seed=st.integers(0, 10_000),
)
def test_whatever_fits_can_be_taken(per_slab, num_slabs, seed):
    """`fits` promises exactly what `take` then does, in any state of owners, hashes and references."""
    rng = random.Random(seed)
    pool, _ = make(num_slabs, *per_slab)
    held: list[Block] = []
    for _ in range(60):
        demand = [rng.randrange(0, 2 * n * num_slabs // 3 + 2) for n in per_slab]
        touched = rng.sample(held, min(len(held), 2))
        if pool.fits(demand, touched):
            pool.touch(touched)
            held += touched
            before = {(block.group, block.block_id) for block in held}
            for group, blocks in enumerate(pool.take(demand)):
                assert len(blocks) == demand[group]
                for block in blocks:
                    assert block.ref_count == 1 and block.hash is None and (group, block.block_id) not in before
                    if rng.random() < 0.5:
                        block.hash = rng.randbytes(8)
                held += blocks
        rng.shuffle(held)
        gone = rng.randrange(len(held) + 1)
        pool.release(held[:gone], rng.choice((NEW, KEPT)))
        for block in rng.sample(held[:gone], gone // 3):
            pool.supersede(block)
        held = held[gone:]
        used = {id(block.slab) for block in held}
        assert pool.num_idle_slabs == num_slabs - len(used)
        assert 0 <= pool.usage <= 1
    pool.release(held)
    assert pool.num_idle_slabs == num_slabs and pool.usage == pytest.approx(0)


@given(sizes=st.lists(st.integers(1, 500).map(lambda n: n * 64), min_size=1, max_size=5), ratio=st.integers(1, 5000))
def test_slabs_hold_whole_blocks_of_every_group(sizes, ratio):
    sizes = [*sizes, max(sizes) * ratio]
    slabs = plan_slabs(tuple(sizes))
    assert slabs.slab_bytes >= max(sizes)
    for size, count, stride in zip(sizes, slabs.blocks_per_slab, slabs.strides, strict=True):
        assert stride >= size and stride % 64 == 0 and count * stride == slabs.slab_bytes
        assert slabs.slab_bytes <= 1.2 * max(sizes) + 64 * 33
        assert count * size * 2.1 >= slabs.slab_bytes, "more than half of a slab would stay empty"


def test_common_pages_waste_little():
    gemma = plan_slabs((15 * 16 * 2 * 256 * 2 * 2, 3 * 16 * 2 * 256 * 2 * 2))
    assert gemma.blocks_per_slab == (1, 5) and gemma.slab_bytes == 15 * 16 * 2 * 256 * 2 * 2
    state_and_keys = plan_slabs((36 * (128 * 64 * 64 * 4 + 3 * 4352 * 2), 4 * 16 * 2 * 8 * 128 * 2))
    for size, count in zip(
        (36 * (128 * 64 * 64 * 4 + 3 * 4352 * 2), 4 * 16 * 2 * 8 * 128 * 2), state_and_keys.blocks_per_slab, strict=True
    ):
        assert state_and_keys.slab_bytes < 1.1 * size * count
