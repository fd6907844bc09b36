"""What each retention promises, against the plain definition of what a token can see."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octavo.cache.retention import KeepAll, KeepWindow

BLOCK = 16


def visible(window: int, num_computed: int) -> range:
    """Positions that the token at `num_computed` sees before itself."""
    return range(max(0, num_computed - window + 1), num_computed)


@given(window=st.integers(1, 100), found=st.lists(st.booleans(), max_size=12))
def test_a_window_s_hit_is_the_longest_whose_next_token_sees_cached_blocks_only(window, found):
    retention = KeepWindow(window)
    hits = [
        h for h in range(len(found) + 1) if all(found[position // BLOCK] for position in visible(window, h * BLOCK))
    ]
    assert retention.longest_hit(len(found), BLOCK, found.__getitem__) == max(hits)


@given(found=st.lists(st.booleans(), max_size=12))
def test_a_full_hit_is_the_leading_run(found):
    length = KeepAll().longest_hit(len(found), BLOCK, found.__getitem__)
    assert all(found[:length]) and (length == len(found) or not found[length])


@given(window=st.integers(1, 100), num_computed=st.integers(0, 300))
def test_blocks_before_the_first_live_one_are_never_seen_again(window, num_computed):
    first = KeepWindow(window).first_live_block(num_computed, BLOCK)
    seen = [*visible(window, num_computed), num_computed]
    assert first == seen[0] // BLOCK


@given(window=st.integers(1, 60), num_tokens=st.integers(1, 200), chunk=st.integers(1, 50))
def test_the_peak_bounds_what_a_request_holds(window, num_tokens, chunk):
    retention = KeepWindow(window)
    computed = 0
    while computed < num_tokens:
        end = min(num_tokens, computed + chunk)
        held = -(-end // BLOCK) - retention.first_live_block(computed, BLOCK)
        assert held <= retention.peak_blocks(num_tokens, BLOCK, chunk)
        computed = end


def test_the_part_of_a_hit_that_must_be_in_the_table():
    assert KeepAll().blocks_of_hit(9, BLOCK) == 0
    assert KeepWindow(17).blocks_of_hit(9, BLOCK) == 8
    assert KeepWindow(18).blocks_of_hit(9, BLOCK) == 7
