"""The compiled attention against the dense definition in float64, each instruction set in turn. Slots that no query may
see hold NaN (tests/dense_attention.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import pytest
import torch

from octavo.ops import dispatch
from octavo.ops.attention import paged_attention as public
from tests.dense_attention import Layout, dense_attention, random_layout

if not dispatch.load("cpu"):
    pytest.skip(f"octavo's CPU kernels are not here: {dispatch.absent()['cpu']}", allow_module_level=True)

from octavo import _cpu
from octavo.ops.cpu.attention import paged_attention
from octavo.ops.cpu.memory import Arena
from octavo.ops.cpu.tape import Tape
from octavo.ops.torch.attention import paged_attention as specification

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
# Rows of one token and of several, shorter than a block of keys and longer, whole tiles of queries and not, and none.
MIXED = [(1, 1), (5, 5), (0, 9), (1, 40), (16, 16), (1, 130), (2, 33), (21, 150), (1, 65), (0, 0)]
# (query heads, key heads, head size): one query head for a key head, and 2, 3, 4, 5, 9; sizes that fill no vector
HEADS = [(2, 2, 32), (4, 2, 128), (3, 1, 64), (4, 1, 96), (5, 1, 64), (9, 1, 32), (2, 1, 20), (4, 2, 7), (3, 1, 80)]
SCALE = 0.2


@pytest.fixture
def threads() -> Iterator[None]:
    _cpu.start_threads([-1] * 3)
    yield
    _cpu.start_threads([-1])


@cache
def layout_of(
    heads: tuple[int, int, int],
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
    rows: tuple[tuple[int, int], ...] = tuple(MIXED),
    block_size: int = 16,
) -> Layout:
    return random_layout(list(rows), *heads, window=window, dtype=dtype, cache_dtype=cache_dtype, block_size=block_size)


_expected: dict[tuple[int, int | None, float | None], torch.Tensor] = {}


def expected_of(layout: Layout, window: int | None = None, soft_cap: float | None = None) -> torch.Tensor:
    """Of one that `layout_of` keeps: once for all instruction sets."""
    key = (id(layout), window, soft_cap)
    if key not in _expected:
        _expected[key] = dense_attention(layout, SCALE, window, soft_cap)
    return _expected[key]


def run(
    layout: Layout, window: int | None = None, soft_cap: float | None = None, sinks: torch.Tensor | None = None
) -> torch.Tensor:
    out = paged_attention(
        layout.q, layout.cache, layout.block_table, layout.query_start, layout.seq_lens, SCALE, window, soft_cap, sinks
    )
    assert out.is_contiguous() and out.dtype == layout.q.dtype
    return out


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float | None = None) -> None:
    tolerance = tolerance or TOLERANCE[found.dtype]
    torch.testing.assert_close(found.double(), expected.double(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_heads(heads: tuple[int, int, int], dtype: torch.dtype, isa: str) -> None:
    layout = layout_of(heads, dtype=dtype)
    close(run(layout), expected_of(layout))


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("window", [1, 16, 21, 100, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [(3, 1, 64), (5, 1, 40)], ids=str)
def test_windows_and_caps(
    heads: tuple[int, int, int], dtype: torch.dtype, window: int | None, soft_cap: float | None, isa: str
) -> None:
    layout = layout_of(heads, window, dtype)
    close(run(layout, window, soft_cap), expected_of(layout, window, soft_cap))


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [
        (torch.float32, torch.int8),
        (torch.bfloat16, torch.int8),
        (torch.float16, torch.int8),
        (torch.float16, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16),
    ],
    ids=str,
)
@pytest.mark.parametrize("heads", [(3, 1, 64), (2, 1, 20)], ids=str)
def test_types(heads: tuple[int, int, int], dtype: torch.dtype, cache_dtype: torch.dtype, isa: str) -> None:
    for window, soft_cap in ((None, None), (21, 2.0)):
        layout = layout_of(heads, window, dtype, cache_dtype)
        close(run(layout, window, soft_cap), expected_of(layout, window, soft_cap))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_heads_of_int8(heads: tuple[int, int, int], dtype: torch.dtype, isa: str) -> None:
    layout = layout_of(heads, None, dtype, torch.int8)
    close(run(layout), expected_of(layout))


@pytest.mark.parametrize("block_size", [1, 4, 48, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_block_sizes(dtype: torch.dtype, block_size: int, isa: str) -> None:
    layout = layout_of((3, 1, 32), 50, dtype, block_size=block_size)
    close(run(layout, 50), expected_of(layout, 50))


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.int8)],
    ids=str,
)
@pytest.mark.parametrize("rows", [((1, 3000), (1, 7)), ((3, 4000), (1, 9)), ((40, 1500), (1, 1400))], ids=str)
@pytest.mark.parametrize("window", [None, 1100])
def test_keys_are_divided_between_threads(
    rows: tuple[tuple[int, int], ...],
    window: int | None,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    isa: str,
    threads: None,
) -> None:
    layout = layout_of((6, 2, 64), window, dtype, cache_dtype, rows=rows)
    sinks = torch.tensor([0.5, -1.0, 30.0, 0.0, 2.0, -40.0])
    found = run(layout, window, sinks=sinks)
    arguments = (layout.block_table, layout.query_start, layout.seq_lens, SCALE, window, None, sinks)
    close(found, specification(layout.q.float(), layout.cache, *arguments), max(TOLERANCE[dtype], 1e-5))
    close(run(layout, window), expected_of(layout, window), max(TOLERANCE[dtype], 1e-5))


def share(layout: Layout, rows: list[int], length: int) -> None:
    """The first `length` tokens of these rows become those of the first of them, whole blocks in the same place."""
    block_size = layout.cache.shape[2]
    for row in rows[1:]:
        whole = length // block_size
        layout.block_table[row, :whole] = layout.block_table[rows[0], :whole]
        layout.keys[row][: whole * block_size] = layout.keys[rows[0]][: whole * block_size]
        layout.values[row][: whole * block_size] = layout.values[rows[0]][: whole * block_size]


@cache
def sharing(
    heads: tuple[int, int, int], dtype: torch.dtype, cache_dtype: torch.dtype
) -> tuple[Layout, list[torch.Tensor]]:
    """Two prefixes, whose rows lie among others and have little and much of their own, and one row with half of a
    prefix only; and what must come out without a cap, with one, and with sinks."""
    decoding = [(1, 401 + 3 * i) for i in range(60)]
    rows = [(1, 300), *decoding[:30], (9, 420), *decoding[30:], (1, 1400), (1, 385), (0, 400)]
    layout = random_layout(rows, *heads, dtype=dtype, cache_dtype=cache_dtype)
    share(layout, [*range(1, 25), 31, 62, 63], 384)
    share(layout, [*range(25, 31), *range(32, 62)], 300)
    share(layout, [1, 64], 192)
    arguments = (layout.block_table, layout.query_start, layout.seq_lens, SCALE, None)
    wide = layout.q.float(), layout.cache
    more = ((None, None), (2.0, None), (None, torch.linspace(-4, 4, heads[0])))
    return layout, [specification(*wide, *arguments, *one) for one in more]


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.int8)],
    ids=str,
)
@pytest.mark.parametrize("heads", [(6, 2, 64), (5, 1, 32), (2, 2, 96)], ids=str)
def test_rows_that_share_a_prefix(
    heads: tuple[int, int, int], dtype: torch.dtype, cache_dtype: torch.dtype, isa: str, threads: None
) -> None:
    layout, (plain, capped, with_sinks) = sharing(heads, dtype, cache_dtype)
    tolerance = max(TOLERANCE[dtype], 1e-5)
    close(run(layout), plain, tolerance)
    close(run(layout, soft_cap=2.0), capped, tolerance)
    close(run(layout, sinks=torch.linspace(-4, 4, heads[0])), with_sinks, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [(6, 2, 32), (6, 1, 20)], ids=str)
def test_sinks(heads: tuple[int, int, int], dtype: torch.dtype, isa: str) -> None:
    """A sink is a key whose value is zero: as large as the largest score, far above and far below."""
    layout = layout_of(heads, 21, dtype)
    sinks = torch.tensor([0.0, 3.0, 100.0, -100.0, -3.0, 1.0])
    arguments = (layout.block_table, layout.query_start, layout.seq_lens, SCALE, 21, None)
    for kind in (torch.float32, dtype):
        expected = specification(layout.q.float(), layout.cache.float(), *arguments, sinks.to(kind))
        close(run(layout, 21, sinks=sinks.to(kind)), expected)
    far = expected_of(layout, 21)[:, 3]
    close(run(layout, 21, sinks=sinks)[:, 3], far)
    # and with few keys, by hand: one key of score s and a sink 1 give the value times e^s / (e^s + e)
    score = float(layout.q[0, 5].double() @ layout.keys[0][0, 5 * heads[1] // 6].double()) * SCALE
    value = layout.values[0][0, 5 * heads[1] // 6].double() * math.exp(score) / (math.exp(score) + math.e)
    close(run(layout, 21, sinks=sinks)[0, 5], value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_scores(dtype: torch.dtype, isa: str) -> None:
    """Maxima that grow all along a row, and fall: weights of what came before must fade to nothing."""
    for sign in (1, -1):
        layout = random_layout([(1, 300), (20, 300), (4, 4)], 3, 1, 32, dtype=dtype)
        for row, length in enumerate(layout.seq_lens.tolist()):
            slope = torch.linspace(-30, 30, length)[:, None, None] * sign
            layout.keys[row] = (layout.keys[row].float() / 8 + slope).to(dtype)
            for position in range(length):
                block = int(layout.block_table[row, position // 16])
                layout.cache[block, 0, position % 16] = layout.keys[row][position]
        layout.q.copy_((layout.q.float() / 8 + 1).to(dtype))
        close(run(layout), dense_attention(layout, SCALE, None, None), 1e-4 if dtype == torch.float32 else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", ["key", "value", "query"])
def test_what_is_not_finite_stays_in_its_row(place: str, dtype: torch.dtype, isa: str) -> None:
    rows = [(1, 20), (1, 35), (9, 40), (20, 40), (1, 18)]
    layout = random_layout(rows, 4, 2, 32, dtype=dtype)
    clean = run(layout)
    for spoilt, tokens in ((1, slice(1, 2)), (3, slice(11, 31))):
        spoilt_layout = random_layout(rows, 4, 2, 32, dtype=dtype)
        if place == "query":
            spoilt_layout.q[tokens, 1, 3] = math.nan
        else:
            block = int(spoilt_layout.block_table[spoilt, 0])
            spoilt_layout.cache[block, int(place == "value"), 2, 1 if place == "key" else 0, 5] = math.nan
        found = run(spoilt_layout)
        others = torch.ones(len(clean), dtype=torch.bool)
        others[tokens] = False
        assert torch.equal(found[others], clean[others])
        wrong = {"query": [1], "key": [2, 3], "value": [0, 1]}[place]
        right = [head for head in range(4) if head not in wrong]
        assert torch.equal(found[tokens][:, right], clean[tokens][:, right])
        if place == "value":
            assert found[tokens][:, wrong, 5].isnan().all()
        else:
            assert found[tokens][:, wrong].isnan().all()


def test_queries_inside_a_product_and_padding(isa: str) -> None:
    """Heads of q further apart than they are long; tokens of no row come out as zeros."""
    for dtype in (torch.float32, torch.bfloat16):
        layout = layout_of((3, 1, 64), None, dtype)
        num_tokens = len(layout.q)
        product = torch.full((num_tokens + 4, 500), torch.nan, dtype=dtype)
        wide = product[:, 100 : 100 + 3 * 80].unflatten(1, (3, 80))[..., :64]
        wide[:num_tokens] = layout.q
        table = torch.cat((layout.block_table, torch.full((3, layout.block_table.shape[1]), 1 << 30)))
        table = torch.cat((table, table), 1)[:, : layout.block_table.shape[1]]  # rows further apart too
        starts = torch.cat((layout.query_start, torch.full((3,), num_tokens, dtype=torch.int32)))
        lengths = torch.cat((layout.seq_lens, torch.tensor([0, 5, 1 << 30], dtype=torch.int32)))
        found = paged_attention(wide, layout.cache, table.to(torch.int32), starts, lengths, SCALE)
        close(found[:num_tokens], expected_of(layout))
        assert not found[num_tokens:].any()


def test_a_recorded_call_reads_its_lengths_when_it_runs(isa: str) -> None:
    rows = ((1, 90), (12, 30), (1, 33))
    first, second = (
        layout_of((3, 1, 64), None, torch.bfloat16, rows=rows),
        random_layout([(1, 33), (1, 90), (12, 40)], 3, 1, 64, dtype=torch.bfloat16, seed=1),
    )
    static = [part.clone() for part in (first.q, first.query_start, first.seq_lens)]
    cache_tensor = torch.full((20, *first.cache.shape[1:]), torch.nan, dtype=torch.bfloat16)
    table = torch.zeros(3, 8, dtype=torch.int32)

    def take(layout: Layout) -> None:
        for mine, theirs in zip(static, (layout.q, layout.query_start, layout.seq_lens), strict=True):
            mine.copy_(theirs)
        cache_tensor[: len(layout.cache)] = layout.cache
        table[:, : layout.block_table.shape[1]] = layout.block_table

    take(first)
    tape = Tape(Arena())
    with torch.inference_mode():
        out = tape.record(lambda: paged_attention(static[0], cache_tensor, table, *static[1:], SCALE))
    assert tape.foreign is None and len(tape) == 1
    close(out, expected_of(first))
    take(second)
    tape.run()
    close(out, dense_attention(second, SCALE, None, None))


def test_steps_that_do_not_fit_their_tensors_are_refused(isa: str) -> None:
    layout = layout_of((2, 2, 32), None, rows=((3, 20), (1, 30)))
    good = (layout.q, layout.cache, layout.block_table, layout.query_start, layout.seq_lens)
    too_long = torch.tensor([20, 16 * layout.block_table.shape[1] + 1], dtype=torch.int32)
    with pytest.raises(IndexError, match=r"row 1 has 49 tokens, and blocks for 48"):
        paged_attention(*good[:4], too_long, SCALE)
    for starts in ([0, 3, 5], [0, 4, 3], [-1, 3, 4]):
        with pytest.raises(IndexError, match=r"row [01] has tokens"):
            paged_attention(*good[:3], torch.tensor(starts, dtype=torch.int32), good[4], SCALE)


def test_what_the_kernels_do_not_take_goes_to_the_specification() -> None:
    layout = layout_of((3, 1, 64))
    expected = expected_of(layout)
    transposed = layout.q.transpose(1, 2).contiguous().transpose(1, 2)  # dims are not next to one another
    arguments = (layout.cache, layout.block_table, layout.query_start, layout.seq_lens)
    close(paged_attention(transposed, *arguments, SCALE), expected)
    close(paged_attention(layout.q, layout.cache, *(part.long() for part in arguments[1:]), SCALE), expected)
    negative = paged_attention(-layout.q, *arguments, -SCALE)
    close(negative, expected)


def test_the_op_is_bound() -> None:
    layout = layout_of((3, 1, 64))
    dispatch.use(("cpu", "torch"))
    try:
        assert dispatch.chosen()["paged_attention"] == "cpu"
        arguments = (layout.q, layout.cache, layout.block_table, layout.query_start, layout.seq_lens)
        assert torch.equal(public(*arguments, SCALE), run(layout))
    finally:
        dispatch.use(("torch",))
