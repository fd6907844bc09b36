"""The Triton attention kernels against the dense definition: on a GPU if there is one, else in Triton's interpreter.

Slots that no query may see hold NaN (tests/dense_attention.py), so a kernel that reads them without masking shows.
"""

from __future__ import annotations

import importlib
import random
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from octavo.attention.backend import SHARED_PREFIX, AttentionCall, AttentionQuery, GroupStep, StepContext
from octavo.ops.attention import PrefixGroups
from tests.dense_attention import Layout, dense_attention, random_layout

pytest.importorskip("triton")

from octavo.attention.triton_paged import TritonPaged
from octavo.ops import ahead
from octavo.ops.dispatch import implementation_of
from octavo.ops.triton.attention_decode import decode_attention
from octavo.ops.triton.attention_prefill import prefill_attention
from octavo.ops.triton.attention_rows import gather_long_rows
from octavo.ops.triton.attention_wide import copy_pages, list_pages
from octavo.ops.triton.attention_work import (
    Bounds,
    DecodeConfig,
    Heads,
    PrefillConfig,
    Work,
    Workspace,
    list_work,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}

# Few keys a tile and few rows a list, so that small shapes have several of each.
DECODE = DecodeConfig(block_n=16, num_warps=4, num_stages=2, fill=4, min_chunk=16, max_programs=4)
PREFILL = PrefillConfig(block_m=16, block_n=16, num_warps=4, num_stages=2)
SMALL = 4  # query tokens that the decode kernel takes

MIXED = [(1, 1), (1, 40), (4, 4), (2, 70), (9, 9), (6, 50)]


def on_device(layout: Layout) -> Layout:
    moved = {name: getattr(layout, name).to(DEVICE) for name in ("q", "block_table", "query_start", "seq_lens")}
    cache = torch.empty_strided(layout.cache.shape, layout.cache.stride(), dtype=layout.cache.dtype, device=DEVICE)
    return replace(layout, cache=cache.copy_(layout.cache), **moved)


def heads_of(layout: Layout, window: int | None = None, soft_cap: float | None = None) -> Heads:
    return Heads(layout.q.shape[1], layout.cache.shape[3], layout.q.shape[2], 0.3, window, soft_cap)


def run(
    layout: Layout,
    heads: Heads,
    decode: DecodeConfig = DECODE,
    prefill: PrefillConfig = PREFILL,
    workspace: Workspace | None = None,
) -> torch.Tensor:
    """Both kernels into one output that was poisoned."""
    layout, workspace = on_device(layout), workspace or Workspace()
    bounds = Bounds(len(layout.seq_lens), SMALL, len(layout.seq_lens), len(layout.q))
    page = layout.cache.shape[2]
    work = list_work(layout.query_start, layout.seq_lens, bounds, heads, page, decode, prefill, workspace)
    out = torch.full_like(layout.q, torch.nan)
    decode_attention(layout.q, layout.cache, layout.block_table, work, out, heads, decode, workspace)
    prefill_attention(layout.q, layout.cache, layout.block_table, work, out, heads, prefill)
    return out.cpu()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.double().cpu(), expected, atol=tolerance, rtol=tolerance)


# Each row of the table: query heads, key/value heads, head size, window, soft cap, dtype, block size.
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "window", "soft_cap", "dtype", "block_size"),
    [
        (2, 2, 64, None, None, torch.float32, 16),
        (4, 1, 128, None, None, torch.float32, 16),
        (8, 1, 80, None, None, torch.float32, 16),
        (4, 2, 256, None, None, torch.float32, 16),
        (6, 2, 16, None, None, torch.float32, 16),  # a group that is no power of two
        (4, 1, 64, 1, None, torch.float32, 16),
        (2, 2, 16, 21, None, torch.float32, 16),
        (2, 1, 16, 32, 1.5, torch.float32, 16),
        (4, 2, 16, None, 2.0, torch.float32, 16),
        (2, 1, 16, None, None, torch.float32, 4),
        (2, 1, 16, 9, None, torch.float32, 32),  # a block of two tiles
        (4, 1, 128, None, None, torch.bfloat16, 16),
        (8, 2, 64, 21, None, torch.bfloat16, 16),
        (4, 1, 80, None, None, torch.float16, 16),
    ],
)
def test_equals_dense_attention(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    window: int | None,
    soft_cap: float | None,
    dtype: torch.dtype,
    block_size: int,
) -> None:
    layout = random_layout(MIXED, num_heads, num_kv_heads, head_dim, window=window, dtype=dtype, block_size=block_size)
    found = run(layout, heads_of(layout, window, soft_cap))
    close(found, dense_attention(layout, 0.3, window, soft_cap))


@pytest.mark.parametrize("num_queries", [1, 2, 3, 4])
def test_each_number_of_decode_tokens(num_queries: int) -> None:
    layout = random_layout([(num_queries, num_queries), (num_queries, 37), (num_queries, 90)], 8, 1, 16)
    close(run(layout, heads_of(layout)), dense_attention(layout, 0.3, None, None))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fused", [True, False])
def test_a_long_row_is_split_and_combined(fused: bool, stream: bool) -> None:
    """Many splits, of which the last is short; then others in the same buffers, whose counts must be back at zero."""
    config, workspace = replace(DECODE, fill=32, max_programs=6, fused=fused, stream=stream), Workspace()
    for seed in (0, 1):
        layout = random_layout([(1, 150), (2, 7), (3, 100)], 4, 2, 16, seed=seed)
        found = run(layout, heads_of(layout), config, workspace=workspace)
        close(found, dense_attention(layout, 0.3, None, None))


def test_wide_tiles_and_long_prefill() -> None:
    """Whole tiles without masks, some before the window's end and some after its start."""
    for window in (None, 40):
        layout = random_layout([(33, 120)], 2, 1, 16, window=window)
        config = PrefillConfig(block_m=32, block_n=32, num_warps=4, num_stages=2)
        close(run(layout, heads_of(layout, window), prefill=config), dense_attention(layout, 0.3, window, None))


@pytest.mark.parametrize("window", [None, 21])
def test_sinks(window: int | None) -> None:
    """A sink of logit s takes exp(s) of the softmax's sum: the rest shrinks by sum / (sum + exp(s))."""
    layout = random_layout(MIXED, 4, 2, 16, window=window)
    sinks = torch.tensor([-1.0, 0.5, 3.0, 9.0])
    heads = replace(heads_of(layout, window), sinks=sinks.to(DEVICE))
    found = run(layout, heads)
    expected = dense_attention(layout, 0.3, window, None)
    at = 0
    for num_queries, keys in zip(layout.query_lens, layout.keys, strict=True):
        for query in range(num_queries):
            last = len(keys) - num_queries + query
            first = 0 if window is None else max(0, last - window + 1)
            for head in range(4):
                logits = keys[first : last + 1, head // 2].double() @ layout.q[at + query, head].double() * 0.3
                total = logits.exp().sum()
                expected[at + query, head] *= total / (total + sinks[head].double().exp())
        at += num_queries
    close(found, expected)


@pytest.mark.parametrize("config", [DECODE, replace(DECODE, stream=True)], ids=["splits", "stream"])
def test_lengths_are_read_on_the_device(config: DecodeConfig) -> None:
    """One list of work within padded bounds serves another mixture: rows and tokens of padding stay untouched."""
    bounds = Bounds(8, SMALL, 4, 40)
    workspace = Workspace()
    for rows in ([(1, 40), (1, 3), (9, 30)], [(30, 30)], [(1, 5)] * 8, [(4, 33), (5, 5), (6, 6)]):
        layout = random_layout(rows, 4, 2, 16)
        expected, moved = dense_attention(layout, 0.3, None, None), on_device(layout)
        num_rows, num_tokens = len(rows), len(layout.q)
        query_start = torch.full((9,), num_tokens, dtype=torch.int32, device=DEVICE)
        query_start[: num_rows + 1] = moved.query_start
        seq_lens = torch.zeros(8, dtype=torch.int32, device=DEVICE)
        seq_lens[:num_rows] = moved.seq_lens
        q = torch.full((40, 4, 16), torch.nan, device=DEVICE)
        q[:num_tokens] = moved.q
        out = torch.full_like(q, torch.nan)
        heads = heads_of(layout)
        work = list_work(query_start, seq_lens, bounds, heads, 16, config, PREFILL, workspace)
        decode_attention(q, moved.cache, moved.block_table, work, out, heads, config, workspace)
        prefill_attention(q, moved.cache, moved.block_table, work, out, heads, PREFILL)
        close(out[:num_tokens], expected)
        assert out[num_tokens:].isnan().all()


def listed(work: Work) -> tuple[list[list[int]], list[list[int]]]:
    items, tiles = (buffer.cpu().view(-1, 16) for buffer in (work.items, work.tiles))
    return items[1 : 1 + int(items[0, 0]), :9].tolist(), tiles[1 : 1 + int(tiles[0, 0]), :4].tolist()


def test_the_list_of_work_covers_every_key_once_within_its_bounds() -> None:
    generator = torch.Generator().manual_seed(1)
    counts = torch.tensor([1, 2, 4, 5, 40, 0, 0])[torch.randint(0, 7, (60,), generator=generator)]
    lengths = (counts + torch.randint(0, 900, (60,), generator=generator)) * (counts > 0)
    starts = torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0)))
    for fill, stream in ((2, False), (400, False), (2, True), (40, True), (9000, True)):
        config = replace(DECODE, fill=fill, min_chunk=48, stream=stream)
        heads = Heads(8, 2, 16, 0.3)
        bounds = Bounds(60, SMALL, int((counts > SMALL).sum()), int(starts[-1]))
        work = list_work(
            starts.int().to(DEVICE), lengths.int().to(DEVICE), bounds, heads, 16, config, PREFILL, Workspace()
        )
        items, tiles = listed(work)
        assert len(items) <= work.max_items
        assert len(tiles) <= work.max_tiles
        slots = [first_slot + split for *_, first_slot, num_splits, split in items if num_splits > 1]
        assert len(set(slots)) == len(slots)
        assert max(slots, default=0) < 2 * work.target
        seen: dict[int, int] = {}
        for row, first_token, tokens, position, begin, end, _, num_splits, split in items:
            assert (first_token, tokens, position) == (starts[row], counts[row], lengths[row] - counts[row])
            assert begin == seen.get(row, 0)
            assert begin < end
            assert begin % 16 == 0
            assert (split == num_splits - 1) == (end == lengths[row])
            seen[row] = end
        assert seen == {row: int(lengths[row]) for row in range(60) if 0 < counts[row] <= SMALL}
        if stream:  # the programs have equal shares, but for the last of them and for rows' ends within a share
            bounds_of = work.starts.cpu()[: work.target + 1].tolist()
            assert bounds_of[0] == 0 and bounds_of[-1] == len(items) and bounds_of == sorted(bounds_of)
            units = [
                sum(-(-(end - begin) // 16) for *_, begin, end, _, _, _ in items[a:b]) for a, b in pairwise(bounds_of)
            ]
            shares = [number for number in units if number]
            assert set(shares[:-1]) <= {shares[0]} and shares[-1] <= shares[0] and sum(units[len(shares) :]) == 0
        tokens_of: dict[int, list[int]] = {}
        for row, first_token, tokens, position in tiles:
            assert position - first_token == lengths[row] - starts[row + 1]
            tokens_of.setdefault(row, []).extend(range(first_token, first_token + tokens))
        expected = {r: list(range(starts[r], starts[r + 1])) for r in range(60) if counts[r] > SMALL}
        assert {row: sorted(tokens) for row, tokens in tokens_of.items()} == expected


def test_long_rows_are_moved_together() -> None:
    counts = torch.tensor([1, 1, 9, 2, 30, 0, 0])
    starts = torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0))).int().to(DEVICE)
    lengths = torch.tensor([5, 6, 19, 8, 30, 0, 0], dtype=torch.int32, device=DEVICE)
    table = torch.arange(35, dtype=torch.int32, device=DEVICE).view(7, 5)
    rows = gather_long_rows(starts, lengths, table, Bounds(7, SMALL, 4, 43), Workspace(), 0)
    assert rows.query_start.tolist() == [2, 11, 13, 43, 43]
    assert rows.seq_lens.tolist() == [19, 8, 30, 0]
    assert torch.equal(rows.block_table[:3], table[2:5])
    none = gather_long_rows(starts[:3].clone(), lengths[:2], table, Bounds(2, SMALL, 1, 2), Workspace(), 0)
    assert none.query_start.diff().tolist() == [0]


# ---- the op and the backend ------------------------------------------------------------------------------------------


def step_of(layout: Layout, padding: int = 0) -> StepContext:
    layout = on_device(layout)
    rows = len(layout.query_lens)
    query_start = torch.cat((layout.query_start, layout.query_start[-1:].expand(padding))).contiguous()
    seq_lens = torch.cat((layout.seq_lens, layout.seq_lens.new_zeros(padding)))
    table = torch.cat((layout.block_table, layout.block_table.new_zeros(padding, layout.block_table.shape[1])))
    return StepContext(
        positions=torch.zeros(len(layout.q), dtype=torch.int64, device=DEVICE),
        query_start=query_start,
        seq_lens=seq_lens,
        query_lens=[*layout.query_lens, *[0] * padding],
        max_seq_lens=[*layout.seq_lens.tolist(), *[0] * padding],
        groups=[GroupStep(table, torch.zeros(len(layout.q), dtype=torch.int64, device=DEVICE))],
        rows=torch.arange(rows + padding, device=DEVICE),
    )


def attend(backend: TritonPaged, layout: Layout, step: StepContext, window: int | None = None) -> torch.Tensor:
    step.groups[0].plan = backend.plan(step, 0)
    _, num_heads, head_dim = layout.q.shape
    call = AttentionCall(0.3, num_heads, layout.cache.shape[3], head_dim, window)
    moved = on_device(layout)
    with torch.inference_mode():
        return backend.forward(moved.q, moved.cache, step, 0, call)


def test_wide_pages_hold_the_rows_and_zeros_after_them() -> None:
    """Of an earlier step, which filled other pages, nothing is left in those that rows have."""
    workspace = Workspace()
    for rows, seed in (([(300, 300), (9, 140)], 0), ([(9, 9), (130, 257), (20, 128)], 1)):
        layout = on_device(random_layout(rows, 4, 2, 20, seed=seed))
        bounds = Bounds(len(rows), SMALL, 4, len(layout.q))
        long = gather_long_rows(layout.query_start, layout.seq_lens, layout.block_table, bounds, workspace, 0)
        pages = list_pages(long, 1024, layout.cache, workspace)
        copy_pages(layout.cache, long, pages)
        assert len(pages.keys) == len(pages.values) == 8
        used = []
        for row, (_, length) in enumerate(rows):
            count = -(-length // 128)
            its = pages.table[row, :count].long()
            used += its.tolist()
            blocks = layout.block_table[row].long()
            for part, found in enumerate((pages.keys[its], pages.values[its])):
                expected = layout.cache[blocks, part].flatten(0, 1)[:length]
                assert torch.equal(found.flatten(0, 1)[:length], expected)
                assert not found.flatten(0, 1)[length:].any()
        assert len(set(used)) == len(used)


def test_the_op_equals_the_specification() -> None:
    layout = on_device(random_layout(MIXED, 4, 2, 16, window=21))
    arguments = (layout.q, layout.cache, layout.block_table, layout.query_start, layout.seq_lens, 0.3, 21, 1.5)
    found = implementation_of("paged_attention", "triton")(*arguments)
    expected = implementation_of("paged_attention", "torch")(*arguments)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [[(1, 30), (1, 31)], MIXED, [(12, 12)]])
def test_backend(rows: list[tuple[int, int]]) -> None:
    layout = random_layout(rows, 4, 2, 16)
    found = attend(TritonPaged(), layout, step_of(layout, padding=3))
    close(found, dense_attention(layout, 0.3, None, None))


def test_backend_keeps_windows_apart() -> None:
    """Layers of one step with windows of their own, in turn: each has its own list of work."""
    layout = random_layout([(1, 60), (2, 45), (8, 50)], 2, 1, 16)
    backend, step = TritonPaged(), step_of(layout)
    moved = on_device(layout)
    step.groups[0].plan = backend.plan(step, 0)
    for window in (None, 5, None, 5):
        found = backend.forward(moved.q, moved.cache, step, 0, AttentionCall(0.3, 2, 1, 16, window))
        close(found, dense_attention(layout, 0.3, window, None))


def test_graph_key_follows_what_the_launches_depend_on() -> None:
    backend = TritonPaged()

    def key(*rows: int, padding: int = 0) -> object:
        layout = random_layout([(tokens, tokens) for tokens in rows], 1, 1, 16)
        return backend.graph_key(step_of(layout, padding))

    assert key(1, 1, 1) == key(1, padding=2)
    assert key(1, 1) != key(1, 2)
    assert key(2, 2) != key(2, 9)
    assert key(1, 1, *[9] * 7) == key(1, *[9] * 8)
    assert key(*[1] * 4, *[9] * 9) != key(*[1] * 4, *[9] * 8)


def test_shared_prefixes_are_read_once_for_all_their_rows() -> None:
    """Rows 1, 3, 4 share four blocks and rows 0, 5 one; row 2 shares none. Own copies of the shared blocks hold NaN."""
    rows = [(1, 20), (1, 70), (2, 30), (3, 90), (1, 65), (1, 17)]
    layout = random_layout(rows, 4, 2, 16)
    groups = [([1, 3, 4], 4), ([0, 5], 1)]
    for members, blocks in groups:
        first = members[0]
        for row in members[1:]:
            layout.cache[layout.block_table[row, :blocks].long()] = torch.nan
            layout.block_table[row, :blocks] = layout.block_table[first, :blocks]
            layout.keys[row][: blocks * 16] = layout.keys[first][: blocks * 16]
            layout.values[row][: blocks * 16] = layout.values[first][: blocks * 16]
    expected = dense_attention(layout, 0.3, None, None)
    step = step_of(layout)
    shared = PrefixGroups(
        torch.tensor([1, 3, 4, 0, 5, 0], dtype=torch.int32, device=DEVICE),
        torch.tensor([0, 3, 5, 5], dtype=torch.int32, device=DEVICE),
        torch.tensor([4, 1, 0], dtype=torch.int32, device=DEVICE),
        tokens=3,
    )
    step.extras[SHARED_PREFIX] = shared
    close(attend(TritonPaged(), layout, step), expected)
    # The rows' own tables may then say anything about the shared blocks, but for the first row of a group.
    for row, blocks in ((3, 4), (4, 4), (5, 1)):
        step.groups[0].block_table[row, :blocks] = 0
    close(attend(TritonPaged(), layout, step), expected)
    # And a layer with a window in such a step reads its keys as ever.
    layout = random_layout(rows, 4, 2, 16, window=21)
    step = step_of(layout)
    step.extras[SHARED_PREFIX] = shared
    close(attend(TritonPaged(), layout, step, 21), dense_attention(layout, 0.3, 21, None))


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_of_one_token_in_groups_beside_others_in_a_padded_step(seed: int) -> None:
    """Groups in any order, over rows in any order, some of one row or of none; with room for one token of each row,
    though other rows have several."""
    rng = random.Random(seed)
    rows = [(rng.choice([1, 1, 1, 3, 6]), 90 + rng.randrange(40)) for _ in range(24)]
    layout = random_layout(rows, 4, 2, 16, dtype=torch.float32)
    ones = [row for row, (tokens, _) in enumerate(rows) if tokens == 1]
    rng.shuffle(ones)
    groups = [(ones[:5], 4), ([], 0), (ones[5:6], 2), (ones[6:9], 1), ([], 3), (ones[9:11], 5)]
    for members, blocks in groups:
        for row in members[1:]:
            layout.keys[row][: blocks * 16] = layout.keys[members[0]][: blocks * 16]
            layout.values[row][: blocks * 16] = layout.values[members[0]][: blocks * 16]
            layout.cache[layout.block_table[row, :blocks].long()] = torch.nan
            layout.block_table[row, :blocks] = 0
    step = step_of(layout, padding=3)
    members, starts = [row for members, _ in groups for row in members], [0]
    for group, _ in groups:
        starts.append(starts[-1] + len(group))
    padding = [99] * (len(rows) + 3 - len(members))
    step.extras[SHARED_PREFIX] = PrefixGroups(
        torch.tensor(members + padding, dtype=torch.int32, device=DEVICE),
        torch.tensor(starts + starts[-1:] * 2, dtype=torch.int32, device=DEVICE),
        torch.tensor([blocks for _, blocks in groups] + [0, 0], dtype=torch.int32, device=DEVICE),
        tokens=1,
    )
    close(attend(TritonPaged(), layout, step), dense_attention(layout, 0.3, None, None))


# ---- beside FlashAttention-4 -----------------------------------------------------------------------------------------


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The backend's module, with a stand-in for the package that computes what FlashAttention-4 documents for these
    arguments: rows cu_seqlens_q[i] : cu_seqlens_q[i + 1], the last queries of seqused_k[i] keys. Its calls are kept."""
    calls: list[dict[str, Any]] = []

    def varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **given: Any) -> tuple[torch.Tensor, None]:
        calls.append(given)
        left, right = given["window_size"]
        assert given["causal"]
        assert right in (None, 0)
        out = torch.full_like(q, torch.nan)
        starts, lengths = given["cu_seqlens_q"].tolist(), given["seqused_k"].tolist()
        assert given["page_table"].shape[0] == len(lengths) == len(starts) - 1
        specification = implementation_of("paged_attention", "torch")
        begin, end = starts[0], starts[-1]
        out[begin:end] = specification(
            q[begin:end],
            torch.stack((k, v), 1),
            given["page_table"],
            given["cu_seqlens_q"] - begin,
            given["seqused_k"],
            given["softmax_scale"],
            None if left is None else left + 1,
            given["softcap"] or None,
        )
        return out, None

    cute: Any = ModuleType("flash_attn.cute")
    cute.flash_attn_varlen_func = varlen
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)
    monkeypatch.delitem(sys.modules, "octavo.attention.flash_triton", raising=False)
    yield importlib.import_module("octavo.attention.flash_triton"), calls
    sys.modules.pop("octavo.attention.flash_triton", None)


@pytest.mark.parametrize("window", [None, 21])
def test_flash_attention_gets_the_long_rows(flash: Any, window: int | None) -> None:
    module, calls = flash
    rows = [(1, 1), (1, 40), (9, 9), (2, 70), (6, 50)]
    layout = random_layout(rows, 4, 2, 16, window=window)
    found = attend(module.FlashTriton(), layout, step_of(layout, padding=5), window)
    close(found, dense_attention(layout, 0.3, window, None))
    (call,) = calls
    assert call["cu_seqlens_q"].tolist() == [2, 11, 13, 19, 19, 19, 19, 19, 19]
    assert call["seqused_k"].tolist() == [9, 70, 50, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("window", [None, 300])
def test_flash_attention_reads_long_rows_from_wide_pages(
    flash: Any, monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    """Layers with a window do not, and steps do not whose keys are too few, too many or read too seldom."""
    module, calls = flash
    monkeypatch.setattr(module, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(module, "LEAST_WIDE_TOKENS", 384)
    monkeypatch.setattr(module, "WIDE_TOKENS", 640)
    monkeypatch.setattr(module, "LEAST_QUERIES", 20)
    backend = module.FlashTriton()
    for rows, is_wide in (
        ([(1, 40), (90, 200), (2, 70), (60, 130)], True),
        ([(1, 40), (90, 200), (60, 128)], True),
        ([(1, 40), (90, 200)], False),  # few keys
        ([(1, 700), (90, 400), (60, 300)], False),  # many
        ([(1, 40), (20, 200), (20, 130)], False),  # read seldom
    ):
        layout = random_layout(rows, 4, 2, 16, window=window)
        step = step_of(layout, padding=5)
        assert backend.is_wide(step) == is_wide
        assert backend.graph_key(step) == (TritonPaged().graph_key(step), is_wide)
        found = attend(backend, layout, step, window)
        close(found, dense_attention(layout, 0.3, window, None))
        call = calls.pop()
        assert call["page_table"].shape[1] == (
            -(-layout.block_table.shape[1] // 8) if is_wide and not window else layout.block_table.shape[1]
        )
        assert call["pack_gqa"] is (False if is_wide and not window else None)


def test_flash_attention_is_not_called_for_a_decode_step(flash: Any) -> None:
    module, calls = flash
    layout = random_layout([(1, 30), (4, 31)], 4, 2, 16)
    close(attend(module.FlashTriton(), layout, step_of(layout)), dense_attention(layout, 0.3, None, None))
    assert not calls


def test_flash_attention_is_not_called_for_very_many_rows(flash: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would compile other kernels for them."""
    module, calls = flash
    monkeypatch.setattr(module, "MOST_ROWS", 7)
    layout = random_layout([(5, 9), (70, 70)], 4, 2, 16)
    close(attend(module.FlashTriton(), layout, step_of(layout, padding=6)), dense_attention(layout, 0.3, None, None))
    assert not calls


def test_where_flash_attention_cannot_be_imported_octavo_s_kernel_serves(flash: Any) -> None:
    module, calls = flash
    backend = module.FlashTriton()
    backend._flash = SimpleNamespace(function=lambda: None)
    layout = random_layout([(1, 40), (9, 9), (2, 70)], 4, 2, 16)
    close(attend(backend, layout, step_of(layout, padding=5)), dense_attention(layout, 0.3, None, None))
    assert not calls


@pytest.mark.parametrize("capability", [(10, 0), (9, 0)])
def test_flash_attention_is_compiled_once_for_layers_that_are_alike(
    flash: Any, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    """On Hopper, for wide pages too."""
    module, calls = flash
    monkeypatch.setattr(module, "_capability", lambda device: capability)
    monkeypatch.setattr(module, "WIDE_TOKENS", 640)
    layout, backend = random_layout([(9, 9), (2, 70)], 4, 2, 16), module.FlashTriton()
    with ahead.Rehearsal(torch.device("cpu"), num_threads=1):
        for _ in range(2):
            attend(backend, layout, step_of(layout))
    close(attend(backend, layout, step_of(layout)), dense_attention(layout, 0.3, None, None))
    assert len(calls) == (3 if capability == (9, 0) else 2)  # one is what was asked for


def test_flash_attention_is_compiled_by_other_processes_first(flash: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told of a call at once, though no thread is free; in a rehearsal alone."""
    module, calls = flash
    monkeypatch.setattr(module, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(module, "WIDE_TOKENS", 640)
    done, may_end = [], threading.Event()

    def wait(name: Any) -> None:
        assert may_end.wait(10)
        done.append(("wait", name[-1], len(calls)))

    backend = module.FlashTriton()
    backend._compilers = SimpleNamespace(
        start=lambda: done.append(("start",)),
        begin=lambda name, arguments: done.append(("begin", name[-1], arguments["pack_gqa"])),
        wait=wait,
        close=lambda: done.append(("close",)),
    )
    backend.prepare()
    assert not done
    layout = random_layout([(9, 9), (2, 70)], 4, 2, 16)
    with ahead.Rehearsal(torch.device("cpu"), num_threads=1) as rehearsal:
        backend.prepare()
        attend(backend, layout, step_of(layout))
    assert done == [("start",), ("begin", False, None), ("begin", True, False)]
    may_end.set()
    rehearsal.wait_beside()
    attend(backend, layout, step_of(layout))
    assert done[3:] == [("wait", False, 0), ("wait", True, 1), ("close",)]


def test_flash_attention_compiles_on_one_thread_at_a_time(flash: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its compiler keeps what it is at in one place. Calls of a kind that was compiled need not wait for another."""
    module, _ = flash
    monkeypatch.setattr(module, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(module, "WIDE_TOKENS", 640)
    backend, inside, most, may_end = module.FlashTriton(), [], [], threading.Event()

    def compile_slowly(q: torch.Tensor, *_: Any, **given: Any) -> tuple[torch.Tensor, None]:
        inside.append(given["pack_gqa"])
        most.append(len(inside))
        assert may_end.wait(10)
        inside.pop()
        return torch.zeros_like(q), None

    backend._flash = SimpleNamespace(function=lambda: compile_slowly)
    layout = random_layout([(9, 9), (2, 70)], 4, 2, 16)
    with ahead.Rehearsal(torch.device("cpu"), num_threads=4):
        for window in (None, 30):
            attend(backend, layout, step_of(layout), window)
    threading.Timer(0.3, may_end.set).start()
    attend(backend, layout, step_of(layout))
    ahead._beside.clear()
    backend._compiling.acquire()  # as of another thread that compiles
    attend(backend, layout, step_of(layout))
    assert len(most) == 5
    assert max(most) == 1


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"capability": (10, 0)}, None),
        ({"capability": (8, 0)}, "compute capability 8.0 is not 9.x or 10.x"),
        ({"capability": None}, "compute capability unknown"),
        ({"dtype": "float32"}, "dtype float32"),
        ({"cache_dtype": "float16"}, "cache dtype float16 is not the model's bfloat16"),
        ({"head_dim": 512}, "head_dim 512"),
        ({"head_dim": 100}, "head_dim 100 is not a multiple of 8"),
        ({"head_dim": 192, "capability": (10, 0)}, "head_dim 192"),
        ({"sinks": True}, "no attention sinks"),
    ],
)
def test_flash_attention_says_what_it_does_not_serve(flash: Any, changed: dict[str, Any], reason: str | None) -> None:
    query = AttentionQuery(128, 32, 8, 16, "bfloat16", "bfloat16", capability=(9, 0))
    found = flash[0].FlashTriton().why_not(replace(query, **changed))
    assert (found is None) if reason is None else (reason in str(found))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"dtype": "float32", "cache_dtype": "float32", "sinks": True, "window": 5}, None),
        ({"cache_dtype": "float8_e4m3fn"}, "cache dtype float8_e4m3fn"),
        ({"head_dim": 257}, "head_dim 257 is over 256"),
        ({"num_heads": 7, "num_kv_heads": 2}, "7 heads are no multiple of 2"),
        ({"capability": (7, 5)}, "compute capability 7.5 is under 8.0"),
    ],
)
def test_the_backend_says_what_it_does_not_serve(changed: dict[str, Any], reason: str | None) -> None:
    query = AttentionQuery(128, 32, 8, 16, "bfloat16", "bfloat16", capability=(8, 6))
    found = TritonPaged().why_not(replace(query, **changed))
    assert (found is None) if reason is None else (reason in str(found))
