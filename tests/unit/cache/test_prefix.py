"""The hash chain and the index."""

from __future__ import annotations

import pytest

from octavo.cache.block import Block, Slab
from octavo.cache.prefix import BlockHasher, PrefixIndex
from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.errors import ConfigurationError


def hashes(token_ids: list[int], *keys: object) -> list[bytes]:
    request = Request("r", token_ids, SamplingParams(), 0.0, cache_keys=keys)
    BlockHasher(4).extend(request)
    return request.block_hashes


def test_only_full_blocks_have_hashes_and_equal_hashes_mean_equal_prefixes():
    long = hashes([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert len(long) == 2
    assert hashes([1, 2, 3, 4, 5, 6, 7, 8])[:2] == long
    assert hashes([1, 2, 3, 4, 9, 6, 7, 8])[0] == long[0]
    assert hashes([1, 2, 3, 4, 9, 6, 7, 8])[1] != long[1]
    assert hashes([0, 2, 3, 4, 5, 6, 7, 8])[1] != long[1], "same block, another prefix"
    assert hashes([1, 2, 3]) == []


def test_keys_reach_every_block_through_the_chain_and_cannot_be_confused():
    plain = hashes([1] * 8)
    variants = [
        hashes([1] * 8, ("cache_salt", "a")),
        hashes([1] * 8, ("cache_salt", "b")),
        hashes([1] * 8, ("adapter", "a")),
        hashes([1] * 8, ("cache_salt", "a"), ("adapter", "a")),
        hashes([1] * 8, ("cache_salt", "a)('adapter', 'a")),
    ]
    for block in (0, 1):
        assert len({plain[block], *(variant[block] for variant in variants)}) == 6


def test_hashes_grow_with_the_request():
    request = Request("r", [1, 2, 3, 4], SamplingParams(), 0.0)
    hasher = BlockHasher(4)
    hasher.extend(request)
    request.token_ids += [5, 6, 7, 8]
    hasher.extend(request)
    assert request.block_hashes == hashes([1, 2, 3, 4, 5, 6, 7, 8])


def test_an_unknown_algorithm_is_refused_by_name():
    with pytest.raises(ConfigurationError, match=r"prefix_caching_hash_algo must be one of sha256, got 'md5'"):
        BlockHasher(16, "md5")


def test_the_first_block_of_a_content_is_the_one_that_is_found():
    index, slab = PrefixIndex(2), Slab(1)
    first, second, other = Block(1, 0, slab), Block(2, 0, slab), Block(1, 1, slab)
    assert index.insert(first, b"h") and not index.insert(second, b"h") and index.insert(other, b"h")
    assert index.find(0, b"h") is first and second.hash is None
    assert index.find(1, b"h") is other


def test_annotations_live_and_die_with_the_block_s_place():
    index, block = PrefixIndex(1), Block(1, 0, Slab(1))
    index.insert(block, b"h")
    index.annotate(block, "logprobs", [1.0])
    assert index.annotation(block, "logprobs") == [1.0]
    index.remove(block)
    block.hash = None
    index.insert(block, b"other")
    assert index.annotation(block, "logprobs") is None


def test_annotations_with_a_size_share_a_budget_and_the_least_recently_read_give_way():
    index, blocks = PrefixIndex(1, annotation_bytes=100), [Block(i, 0, Slab(1)) for i in range(4)]
    for i, block in enumerate(blocks):
        index.insert(block, bytes([i]))
        index.annotate(block, "kind", "kept for ever")
    for block in blocks[:3]:
        index.annotate(block, "rows", "x", 30)
    assert index.annotation(blocks[0], "rows") == "x" and index.annotation_bytes_used == 90
    index.annotate(blocks[3], "rows", "x", 30)
    assert [index.annotation(block, "rows") for block in blocks] == ["x", None, "x", "x"]
    index.annotate(blocks[0], "rows", "y", 40)  # another in its place: the old one's size is free
    assert [index.annotation(block, "rows") for block in blocks] == ["y", None, "x", "x"]
    index.annotate(blocks[1], "rows", "too large", 101)
    assert index.annotation(blocks[1], "rows") is None and index.annotation_bytes_used == 100
    index.remove(blocks[0])
    assert index.annotation_bytes_used == 60
    assert all(index.annotation(block, "kind") == "kept for ever" for block in blocks[1:])


def test_a_claim_belongs_to_the_first_and_ends_with_it():
    index = PrefixIndex(1)
    assert index.claim([b"a", b"b"], "first") == [b"a", b"b"]
    assert index.claim([b"b", b"c"], "second") == [b"c"]
    index.disclaim([b"a", b"b", b"c"], "first")
    assert (index.owner(b"a"), index.owner(b"b"), index.owner(b"c")) == (None, None, "second")


def test_chains_branch_where_an_earlier_one_went_on_otherwise_and_not_where_it_ended():
    index = PrefixIndex(1)
    index.note([b"a", b"b", b"c"])
    assert index.branch([b"a", b"b", b"x"]) == 2
    assert index.branch([b"a", b"b"]) == 2
    assert index.branch([b"a", b"b", b"c", b"d"]) == 0, "it goes on"
    assert index.branch([b"x", b"y"]) == 0
    index.note([b"a", b"b", b"c", b"d"])
    index.note([b"a", b"b", b"c"])
    assert index.branch([b"a", b"b", b"c", b"x"]) == 3
