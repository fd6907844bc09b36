from __future__ import annotations

import math

import pytest
import torch

from octavo.attention.backend import AttentionCall, AttentionQuery, GroupStep, StepContext
from octavo.attention.torch_sdpa import SLICE, TorchSdpa, _buckets
from tests.dense_attention import Layout, dense_attention, random_layout

MIXED = [(1, 1), (5, 5), (1, 40), (7, 30), (16, 16), (1, 17), (2, 33), (1, 200)]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def step_of(layout: Layout) -> StepContext:
    return StepContext(
        positions=torch.zeros(len(layout.q), dtype=torch.int64),
        query_start=layout.query_start,
        seq_lens=layout.seq_lens,
        query_lens=layout.query_lens,
        max_seq_lens=layout.seq_lens.tolist(),
        groups=[GroupStep(layout.block_table, torch.zeros(len(layout.q), dtype=torch.int64))],
        rows=torch.arange(len(layout.query_lens)),
    )


def attend(
    layout: Layout, window: int | None = None, soft_cap: float | None = None, backend: TorchSdpa | None = None
) -> torch.Tensor:
    backend = backend or TorchSdpa()
    step = step_of(layout)
    step.groups[0].plan = backend.plan(step, 0)
    _, num_heads, head_dim = layout.q.shape
    call = AttentionCall(0.3, num_heads, layout.cache.shape[3], head_dim, window, soft_cap)
    with torch.inference_mode():
        return backend.forward(layout.q, layout.cache, step, 0, call)


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 1, 16, 21])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 4, 16), (6, 2, 8), (3, 1, 20)])
@pytest.mark.parametrize(
    "rows", [MIXED, [(1, 30), (1, 31), (1, 32), (1, 5)], [(40, 40)], [(3, 50), (1, 1)], [(21, 21), (22, 22)]]
)
def test_equals_dense_attention(
    rows: list[tuple[int, int]],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    window: int | None,
    soft_cap: float | None,
) -> None:
    layout = random_layout(rows, num_heads, num_kv_heads, head_dim, window=window)
    expected = dense_attention(layout, 0.3, window, soft_cap)
    torch.testing.assert_close(attend(layout, window, soft_cap).double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("window", [None, 100])
def test_a_long_chunk_is_cut_into_slices_of_queries(window: int | None) -> None:
    """Chunks longer than a slice, from the start and not; then a longer one, for which the kept mask must grow."""
    backend = TorchSdpa()
    for rows in ([(SLICE + 30, SLICE + 30)], [(SLICE + 5, SLICE + 70), (1, 9)], [(20, 1500)]):
        layout = random_layout(rows, 2, 1, 4, window=window)
        expected = dense_attention(layout, 0.3, window, None)
        torch.testing.assert_close(attend(layout, window, backend=backend).double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("block_size", [4, 16, 32])
def test_decode_rows_of_very_different_lengths(block_size: int) -> None:
    rows = [(1, 3000), (1, 7), (1, 2900), (1, 8), (1, 1400), (1, 1), (1, 9)]
    layout = random_layout(rows, 2, 2, 4, block_size=block_size)
    torch.testing.assert_close(attend(layout).double(), dense_attention(layout, 0.3, None, None), atol=2e-6, rtol=0)


def test_buckets_hold_every_row_once_and_bound_the_padding() -> None:
    widths = [188, 1, 182, 1, 88, 1, 1, 187, 2]
    buckets = _buckets([(width, row) for row, width in enumerate(widths)], allowance=64)
    assert sorted(row for rows, _ in buckets for row in rows) == list(range(len(widths)))
    assert 1 < len(buckets) < 5
    for rows, width in buckets:
        held = [widths[row] for row in rows]
        assert width == max(held)
        assert len(rows) * width - sum(held) <= max(64, sum(held) // 4)
    assert len(_buckets([(3, 0), (4, 1), (3, 2)], allowance=64)) == 1


@pytest.mark.parametrize("soft_cap", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(dtype: torch.dtype, soft_cap: float | None) -> None:
    layout = random_layout(MIXED, 4, 2, 16, dtype=dtype)
    out = attend(layout, soft_cap=soft_cap)
    assert out.dtype == dtype
    expected = dense_attention(layout, 0.3, None, soft_cap)
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=2e-2)


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.int8])
def test_a_cache_of_another_type_than_the_queries(cache_dtype: torch.dtype) -> None:
    layout = random_layout(MIXED, 4, 2, 16, cache_dtype=cache_dtype)
    torch.testing.assert_close(attend(layout).double(), dense_attention(layout, 0.3, None, None), atol=2e-6, rtol=0)


def test_a_row_of_nan_leaves_its_neighbours_alone() -> None:
    layout = random_layout([(1, 20), (1, 35), (4, 10), (1, 18)], 2, 1, 8)
    expected = attend(layout)
    layout.cache[layout.block_table[1, 0].long()] = math.nan
    found = attend(layout)
    assert found[1].isnan().all()
    others = [0, 2, 3, 4, 5, 6]
    assert torch.equal(found[others], expected[others])


def test_layers_of_one_group_may_have_different_windows() -> None:
    layout = random_layout([(1, 60), (5, 40)], 2, 1, 8)
    backend, step = TorchSdpa(), step_of(layout)
    step.groups[0].plan = backend.plan(step, 0)
    for window in (None, 7, 30):
        out = backend.forward(layout.q, layout.cache, step, 0, AttentionCall(0.3, 2, 1, 8, window))
        torch.testing.assert_close(out.double(), dense_attention(layout, 0.3, window, None), atol=2e-6, rtol=0)


def test_says_what_it_cannot_serve() -> None:
    def query(**changes: object) -> AttentionQuery:
        fields = {"head_dim": 8, "num_heads": 2, "num_kv_heads": 1, "block_size": 16}
        return AttentionQuery(**{**fields, "dtype": "float32", "cache_dtype": "bfloat16", **changes})  # type: ignore[arg-type]

    backend = TorchSdpa()
    assert backend.why_not(query(window=4, soft_cap=1.0)) is None
    assert "sinks" in str(backend.why_not(query(sinks=True)))
    assert "float8_e4m3fn" in str(backend.why_not(query(cache_dtype="float8_e4m3fn")))
    assert "int8" in str(backend.why_not(query(dtype="int8")))
