"""Norms, activations, rotation, batches and sampling in C++: each instruction set in turn, over the tables and by the
formulas of test_ops and test_sampling, and what is special to these kernels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from octavo.ops import dispatch
from octavo.ops import sampling as bound
from octavo.ops.torch.cache import from_cache
from tests.ops import test_ops, test_sampling

if not dispatch.load("cpu"):
    pytest.skip(f"octavo's CPU kernels are not here: {dispatch.absent()['cpu']}", allow_module_level=True)

from octavo import _cpu
from octavo.ops.cpu.memory import Arena
from octavo.ops.cpu.tape import Tape

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPS = dispatch.load("cpu")
SPECIFICATION = dispatch.load("torch")
SHAPES = [(1, 1), (2, 15), (3, 17), (1, 64), (5, 33), (2, 576), (70, 200)]


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    _cpu.start_threads([-1] * request.param)
    yield request.param
    _cpu.start_threads([-1])


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> str:
    """What the public functions of sampling call."""
    for op in test_sampling.OPS:
        monkeypatch.setattr(dispatch.bound, op, OPS[op])
    return "cpu"


# ---- norms and activations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_by_their_formulas(isa: str, dtype: torch.dtype) -> None:
    for shape, offset in itertools.product([*SHAPES, (4, 3, 16), (2, 3, 7)], (0.0, 1.0)):
        test_ops.test_rms_norm("cpu", dtype, shape, offset)
        if len(shape) == 2:
            test_ops.test_add_rms_norm("cpu", dtype, shape, offset)
    for groups, before in itertools.product((1, 4), (False, True)):
        test_ops.test_gated_rms_norm("cpu", dtype, groups, before)
    if dtype != torch.float32:
        test_ops.test_a_wide_residual_stays_wide("cpu", dtype)
    test_ops.test_rms_norm_of_heads_inside_a_product("cpu")
    test_ops.test_mark_bad_rows("cpu", dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", test_ops.ACTIVATIONS)
def test_activations_by_their_formulas(isa: str, op: str, dtype: torch.dtype) -> None:
    test_ops.test_gated_activations(op, "cpu", dtype)
    for rows, width in [(1, 1), (2, 15), (3, 17), (1, 2049), (2, 5000)]:  # the last two are more than one piece
        x = test_ops.random(rows, 2 * width, dtype=dtype, scale=3.0)
        gate, up = x.double().chunk(2, -1)
        test_ops.close(OPS[op](x), gate.apply_(test_ops.ACTIVATIONS[op]) * up, dtype)


@pytest.mark.parametrize("op", test_ops.ACTIVATIONS)
def test_activations_from_end_to_end_of_float32(isa: str, op: str) -> None:
    """To the last digits where they matter, without an overflow on the way, and what is not finite shows."""
    gate = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-3e38, -1e30, -200.0, -90.0, -0.0, 90.0, 1e30])])
    x = torch.stack([gate, torch.ones_like(gate)], 1)
    torch.testing.assert_close(OPS[op](x).double(), SPECIFICATION[op](x.double()), rtol=1e-6, atol=2e-7)
    broken = OPS[op](torch.tensor([[math.nan, math.inf, 1.0, 1.0], [math.inf, 1.0, 1.0, math.nan]]))
    assert torch.isfinite(broken).tolist() == [[False, False], [False, False]]


def test_norms_divided_over_threads_are_the_same(isa: str, threads: int) -> None:
    x, residual = test_ops.random(600, 200, dtype=torch.bfloat16), test_ops.random(600, 200, dtype=torch.float32)
    weight = test_ops.random(200, dtype=torch.bfloat16, seed=1)
    gate = test_ops.random(600, 400, dtype=torch.bfloat16, seed=2)
    rows = range(0, 600, 7)
    for function in (
        lambda part: OPS["rms_norm"](x[part], weight, 1e-5),
        lambda part: OPS["add_rms_norm"](x[part], residual[part], weight, 1e-5)[1],
        lambda part: OPS["add_rms_norm"](x[part], residual[part], weight, 1e-5)[0],
        lambda part: OPS["gated_rms_norm"](x[part], gate[part, :200], weight, 1e-5, 2),
        lambda part: OPS["silu_and_mul"](gate[part]),
        lambda part: OPS["gelu_and_mul"](gate[part]),
    ):
        whole = function(slice(None))
        assert all(torch.equal(whole[row : row + 1], function(slice(row, row + 1))) for row in rows)


# ---- the cache and the batch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_and_cache_writes_by_their_formulas(isa: str, dtype: torch.dtype) -> None:
    for (heads, kv_heads, size, rotated), with_norm in itertools.product(
        [(1, 1, 8, 8), (4, 2, 16, 16), (3, 1, 20, 12), (2, 1, 64, 64), (2, 2, 80, 40), (1, 1, 6, 2)], (False, True)
    ):
        test_ops.test_rope_and_write("cpu", dtype, heads, kv_heads, size, rotated, with_norm)
    test_ops.test_write_kv("cpu", dtype)
    for op in ("write_kv", "rope_and_write"):
        test_ops.test_padding_writes_nothing(op, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_int8_cache(isa: str, dtype: torch.dtype) -> None:
    """Values come out bit by bit as they are specified; keys, whose rotation rounds otherwise, within one step."""
    tokens, heads, size = 300, 2, 24
    q, k, v = test_ops.random(tokens, 3 * heads, size, dtype=dtype).split(heads, 1)
    for token, value in enumerate((0.0, 1e-35, torch.inf, -torch.inf, torch.nan)):
        v[token, 0, 5:] = value
        v[token, 1] = value
    cos_sin, weight = torch.rand(tokens, size), test_ops.random(size, dtype=dtype, seed=2)
    positions, slots = torch.randperm(tokens), torch.randperm(tokens)
    caches = [torch.zeros(20, 2, 16, heads, size + 4, dtype=torch.int8) for _ in range(2)]
    for implementation, cache in zip((OPS, SPECIFICATION), caches, strict=True):
        implementation["rope_and_write"](q, k, v, positions, cos_sin, cache, slots, weight, weight, 1e-5)
    values = [cache[:, 1].flatten(0, 1)[slots] for cache in caches]
    finite, broken = ([value[part] for value in values] for part in (slice(5, None), slice(2, 5)))
    assert torch.equal(values[0][..., :size], values[1][..., :size])
    assert torch.equal(*finite)
    assert from_cache(broken[0], torch.float32)[:, 1].isfinite().logical_not().all()
    assert not from_cache(values[0][:2], torch.float32)[:, 1].any()
    keys = [cache[:, 0].flatten(0, 1)[slots] for cache in caches]
    steps = keys[1][..., -4:].contiguous().view(torch.float32)
    apart = (from_cache(keys[0], torch.float32) - from_cache(keys[1], torch.float32)).abs()
    assert (apart <= steps * 1.01 + {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]).all()
    alone = torch.zeros_like(caches[0])
    OPS["write_kv"](v, v, alone, slots)
    assert torch.equal(alone[:, 1], caches[0][:, 1]) and torch.equal(alone[:, 0], alone[:, 1])


@pytest.mark.parametrize("cache_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cache_of_another_type(isa: str, dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    """Keys are rounded to the rows' type first. Many tokens, so that threads share them."""
    tokens, heads, size = 300, 2, 24
    q, k, v = test_ops.random(tokens, 3 * heads, size, dtype=dtype).split(heads, 1)
    cos_sin, weight = torch.rand(tokens, size), test_ops.random(size, dtype=dtype, seed=2)
    positions, slots = torch.randperm(tokens), torch.randperm(tokens)
    caches = [torch.zeros(20, 2, 16, heads, size, dtype=cache_dtype) for _ in range(2)]
    found, expected = (
        implementation["rope_and_write"](q, k, v, positions, cos_sin, cache, slots, weight, weight, 1e-5)
        for implementation, cache in zip((OPS, SPECIFICATION), caches, strict=True)
    )
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    tolerance = max(tolerance, {torch.float32: 0.0, torch.bfloat16: 3e-2, torch.float16: 4e-3}[cache_dtype])
    torch.testing.assert_close(*caches, atol=tolerance, rtol=tolerance)
    assert torch.equal(caches[0][:, 1], caches[1][:, 1])


def test_what_lies_outside_is_refused() -> None:
    cache = torch.zeros(3, 2, 4, 1, 8)
    heads, table = torch.ones(1, 1, 8), torch.ones(5, 8)
    zero = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(IndexError):
        OPS["write_kv"](heads, heads, cache, torch.tensor([12]))
    for position in (-1, 5):
        with pytest.raises(IndexError):
            OPS["rope_and_write"](heads, heads, heads, torch.tensor([position]), table, cache, zero)
    assert not cache.any()
    with pytest.raises(IndexError):
        OPS["append_sampled"](zero, zero, torch.zeros(2, 3, dtype=torch.int32), torch.tensor([3, 0]))
    logits = torch.zeros(2, 5)
    for id in (-1, 5):
        with pytest.raises(IndexError):
            OPS["gather_logprobs"](logits, torch.tensor([0, id]), 1)
        with pytest.raises(IndexError):
            OPS["token_ranks"](logits, torch.tensor([[0], [id]]))
    with pytest.raises(IndexError):
        OPS["apply_bitmask"](logits, torch.tensor([2]), torch.zeros(1, 1, dtype=torch.int32))
    with pytest.raises(ValueError, match="shorter than the vocabulary"):
        OPS["apply_bitmask"](torch.zeros(2, 33), zero, torch.zeros(1, 1, dtype=torch.int32))


@pytest.mark.parametrize(("row", "count", "tokens"), [(4, 1, 4), (-1, 1, 4), (0, 8, 8), (1, 3, 2)])
def test_a_batch_outside_of_its_table_is_refused(row: int, count: int, tokens: int) -> None:
    """A row that is not there, one without so many tokens, more tokens than there is room for."""
    ids, positions, row_of_token, slots = (torch.full((tokens,), 7) for _ in range(4))
    start, lens = torch.full((2,), 7, dtype=torch.int32), torch.full((1,), 7, dtype=torch.int32)
    table, computed = torch.zeros(4, 3, dtype=torch.int32), torch.full((4,), 2)
    with pytest.raises(IndexError):
        OPS["build_batch"](
            torch.tensor([row]),
            torch.tensor([count]),
            torch.zeros(4, 9, dtype=torch.int32),
            computed,
            [table],
            4,
            ids,
            positions,
            row_of_token,
            start,
            lens,
            [slots],
            [torch.zeros(1, 3, dtype=torch.int32)],
        )
    assert (computed == 2).all()
    assert all((buffer == 7).all() for buffer in (ids, positions, row_of_token, slots, start, lens))


# ---- what the kernels were not written for ---------------------------------------------------------------------------


def test_other_types_and_strides_go_to_the_specification() -> None:
    x, weight = torch.randn(3, 16, dtype=torch.float64), torch.randn(16, dtype=torch.float64)
    narrow = x.bfloat16()
    close = torch.testing.assert_close
    for arguments in (
        (x, weight, 1e-5),
        (narrow, weight.float(), 1e-5),
        (x.float().t().contiguous().t(), weight.float(), 1e-5),
        (x.float(), torch.randn(32)[::2], 1e-5),
        (torch.randn(2, 3, 4, 20)[..., :16], weight.float(), 1e-5),
    ):
        close(OPS["rms_norm"](*arguments), SPECIFICATION["rms_norm"](*arguments))
    close(
        OPS["add_rms_norm"](x.float(), narrow, weight.float(), 1e-5),
        SPECIFICATION["add_rms_norm"](x.float(), narrow, weight.float(), 1e-5),
    )
    for op in test_ops.ACTIVATIONS:
        for value in (x, x.float().t().contiguous().t(), torch.randn(2, 3, 8)):
            close(OPS[op](value), SPECIFICATION[op](value))
    logits = torch.randn(4, 700, dtype=torch.float64)
    ones, zeros, counter = torch.ones(4), torch.zeros(4), torch.arange(4)
    columns = (ones, counter + 3, ones * 0.9, zeros, counter, counter)
    for values, arguments in ((logits, columns), (logits.float(), (torch.ones(8)[::2], *columns[1:]))):
        for found, expected in zip(
            OPS["choose_tokens"](values, *arguments), SPECIFICATION["choose_tokens"](values, *arguments), strict=True
        ):
            close(found, expected)
    strided = torch.randn(700, 4).t()
    close(OPS["argmax"](strided), SPECIFICATION["argmax"](strided))
    close(OPS["log_mass"](logits), SPECIFICATION["log_mass"](logits))
    assert not OPS["mark_bad_rows"](x, torch.tensor([0, 1, 1]), 2).any()


def test_padding_writes_nothing_in_the_specification_either() -> None:
    """Where a cache is of a type that the kernels do not know."""
    cache = torch.zeros(3, 2, 4, 2, 8, dtype=torch.float64)
    q, k, v = torch.randn(3, 6, 8).split(2, 1)
    slots = torch.tensor([-1, 6, -1])
    OPS["write_kv"](k, v, cache, slots)
    assert torch.equal(cache[1, :, 2], torch.stack([k[1], v[1]]).double()) and int(cache.count_nonzero()) == 32
    cache.zero_()
    table = torch.tensor([[1.0] * 4 + [0.0] * 4])
    assert torch.equal(OPS["rope_and_write"](q, k, v, torch.zeros(3, dtype=torch.int64), table, cache, slots), q)
    assert torch.equal(cache[1, :, 2], torch.stack([k[1], v[1]]).double()) and int(cache.count_nonzero()) == 32


# ---- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [7, 300, 5000])
def test_truncation_by_sorting(isa: str, cpu: str, vocab_size: int) -> None:
    for scale in (0.05, 3.0):
        test_sampling.test_truncation_equals_the_sorted_definition(cpu, vocab_size, scale)


def test_special_rows(isa: str, cpu: str) -> None:
    test_sampling.test_ties_stay_under_top_k_and_go_by_id_under_top_p()
    test_sampling.test_coarse_logits_with_many_ties_equal_the_definition(cpu)
    test_sampling.test_masked_tokens_stay_masked_and_broken_rows_harm_nobody()
    test_sampling.test_a_row_with_few_tokens_left(cpu, 4000)
    test_sampling.test_broken_rows_give_some_token_of_the_vocabulary()
    test_sampling.test_broken_rows_are_shown_and_harm_nobody()
    for vocab_size in (10, 512, 1283):
        test_sampling.test_argmax(vocab_size)


def test_draws(isa: str, cpu: str) -> None:
    test_sampling.test_draws_invert_the_distribution_exactly(cpu)
    test_sampling.test_rare_tokens_are_drawn_as_often_as_they_should()
    test_sampling.test_choices_invert_what_is_left_of_the_distribution(cpu, 11, torch.bfloat16)
    test_sampling.test_choices_invert_what_is_left_of_the_distribution(cpu, 1000, torch.float32)
    test_sampling.test_row_uniform_equals_splitmix64_at_the_borders_of_int64()


def test_log_probabilities_masks_and_penalties(isa: str, cpu: str) -> None:
    for vocab_size, num_top in ((11, 0), (11, 11), (20_001, 5)):
        test_sampling.test_logprobs_and_ranks_against_the_formula(vocab_size, num_top)
    test_sampling.test_equal_logits_share_a_rank_and_num_top_stops_at_the_vocabulary()
    test_sampling.test_penalties_against_transformers_and_the_definition()
    test_sampling.test_ranks_of_chosen_tokens_count_the_likelier_ones()
    test_sampling.test_log_mass()
    for vocab_size, rows in itertools.product((5, 32, 100), ([0, 1, 2], [2])):
        test_sampling.test_a_bit_of_zero_rules_a_token_out(vocab_size, rows)


KINDS = [
    (temperature, top_k, top_p, min_p)
    for temperature in (0.0, 0.6, 1.7)
    for top_k in (0, 3, 60, 900)
    for top_p in (1.0, 0.8007, 0.2003)
    for min_p in (0.0, 0.0203)
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_choices_of_all_types_by_the_definition(isa: str, dtype: torch.dtype) -> None:
    """A vocabulary that fills neither blocks nor vectors, rows that are far apart."""
    vocab_size = 1203
    generator = torch.Generator().manual_seed(5)
    logits = (torch.randn(len(KINDS), vocab_size + 9, generator=generator) * 2).to(dtype)[:, :vocab_size]
    temperature, top_k, top_p, min_p = (torch.tensor(column) for column in zip(*KINDS, strict=True))
    seeds = torch.arange(len(KINDS)) * 77
    ids, greatest = OPS["choose_tokens"](logits, temperature, top_k, top_p, min_p, seeds, seeds + 1)
    for row, kind in enumerate(KINDS):
        # equal logits under top_p go by id, whatever a division by the temperature makes of them
        probabilities = test_sampling.chosen_by_sorting(logits[row].float().numpy(), *kind)
        uniform = test_sampling.splitmix64(int(seeds[row]), int(seeds[row]) + 1)
        end = probabilities.cumsum()
        assert ids[row] == np.flatnonzero((end > uniform) & (probabilities > 0))[0], kind
    torch.testing.assert_close(greatest, logits.float().amax(-1) / temperature.where(temperature > 0, torch.ones(())))
    found, values = OPS["argmax"](logits)
    assert torch.equal(found, logits.float().argmax(-1)) and torch.equal(values, logits.amax(-1))
    kept = OPS["mask_truncated"](logits, top_k, top_p, min_p)
    assert kept.dtype == dtype
    for row, (_, *kind) in enumerate(KINDS):
        want = test_sampling.kept_by_sorting(logits[row].float().numpy(), *kind)
        assert np.array_equal(torch.isfinite(kept[row]).numpy(), want), kind
        assert torch.equal(kept[row][want], logits[row][want])


@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_threads_share_a_row_or_rows(isa: str, threads: int, rows: int) -> None:
    """A vocabulary that is worth several threads: the same to the last bit as by one thread alone."""
    vocab_size = 40_003
    logits = torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(rows)) * 2
    logits[:, -1] = 7.0
    kinds = [KINDS[7 * row % len(KINDS)] for row in range(rows)]
    temperature, top_k, top_p, min_p = (torch.tensor(column) for column in zip(*kinds, strict=True))
    counter, uniform = torch.arange(rows), torch.rand(rows, dtype=torch.float64)

    def everything() -> list[torch.Tensor]:
        return [
            *OPS["choose_tokens"](logits, temperature, top_k, top_p, min_p, counter, counter),
            *OPS["argmax"](logits),
            OPS["sample"](logits, uniform),
            OPS["log_mass"](logits),
            *OPS["gather_logprobs"](logits, counter, 7),
            OPS["mask_truncated"](logits, top_k, top_p, min_p),
        ]

    found = everything()
    _cpu.start_threads([-1])
    for ours, alone in zip(found, everything(), strict=True):
        assert torch.equal(ours, alone)


@pytest.mark.parametrize("temperature", [1e-45, 1e-20, 1e-3, 1e20, 3e38])
def test_extreme_temperatures(isa: str, temperature: float) -> None:
    """The coldest take the likeliest, the hottest any alike."""
    logits = torch.randn(64, 300, generator=torch.Generator().manual_seed(1))
    ones, counter = torch.ones(64), torch.arange(64)
    for top_k, top_p in ((0, 1.0), (10, 1.0), (0, 0.5), (10, 0.5)):
        ids, _ = OPS["choose_tokens"](
            logits, ones * temperature, torch.full((64,), top_k), ones * top_p, ones * 0, counter, counter
        )
        assert ((ids >= 0) & (ids < 300)).all()
        if temperature < 1e-2:
            assert torch.equal(ids, logits.argmax(-1))
        else:
            assert len(ids.unique()) > 5
            if top_k:
                assert (logits.gather(1, ids[:, None]) >= logits.topk(top_k).values[:, -1:]).all()


def test_rows_that_are_not_there() -> None:
    none, empty = torch.empty(0), torch.empty(0, dtype=torch.int64)
    logits = torch.empty(0, 50)
    ids, greatest = OPS["choose_tokens"](logits, none, empty, none, none, empty, empty)
    assert ids.shape == greatest.shape == (0,)
    assert OPS["sample"](logits, none.double()).shape == (0,)
    assert OPS["rms_norm"](torch.empty(0, 8), torch.ones(8), 1e-5).shape == (0, 8)
    assert OPS["silu_and_mul"](torch.empty(0, 8)).shape == (0, 4)


# ---- on a tape -------------------------------------------------------------------------------------------------------


def test_a_tape_reads_what_differs_when_it_runs() -> None:
    """Positions, slots, parameters and values lie behind the addresses that were recorded."""
    x, residual, weight = torch.randn(4, 64), torch.randn(4, 64), torch.randn(64)
    positions, slots, rows = torch.arange(4), torch.arange(4), torch.tensor([0, 0, 1, 2])
    cos_sin, cache = torch.rand(20, 16), torch.zeros(4, 2, 4, 1, 16)
    columns = [torch.ones(4), torch.full((4,), 5), torch.ones(4), torch.zeros(4), torch.arange(4), torch.arange(4)]

    def step(ops: Any, cache: torch.Tensor) -> list[torch.Tensor]:
        normed, total = ops["add_rms_norm"](x, residual, weight, 1e-5)
        q, k, v = total.view(4, 4, 16).split((2, 1, 1), 1)
        turned = ops["rope_and_write"](q, k, v, positions, cos_sin, cache, slots)
        bad = ops["mark_bad_rows"](normed, rows, 3)
        chosen, greatest = ops["choose_tokens"](ops["silu_and_mul"](normed), *columns)
        return [normed, total, turned, bad, chosen, greatest]

    tape = Tape(Arena())
    results = tape.record(lambda: step(OPS, cache))
    assert tape.foreign is None and len(tape) == 5
    for turn in range(3):
        x.normal_(), residual.normal_()
        x[turn] = torch.nan if turn else 0.0
        positions.random_(0, 20)
        slots.copy_(torch.randperm(16)[:4])
        columns[1].fill_(turn + 1)
        columns[0][0] = turn
        cache.zero_()
        expected_cache = torch.zeros_like(cache)
        expected = step(SPECIFICATION, expected_cache)
        tape.run()
        sound = torch.isfinite(x).all(1)
        for found, want in zip(results, expected, strict=True):
            per_token = len(found) == 4
            torch.testing.assert_close(found[sound] if per_token else found, want[sound] if per_token else want)
        torch.testing.assert_close(cache, expected_cache, equal_nan=True)


def test_public_functions_are_these_where_cpu_comes_first() -> None:
    chosen = dispatch.use(("cpu", "torch"))
    try:
        assert {op for op, name in chosen.items() if name == "cpu"} == set(OPS)
        logits = torch.tensor([[1.0, 3.0, 2.0]])
        assert bound.argmax(logits)[0].tolist() == [1]
    finally:
        dispatch.use((dispatch.SPECIFICATION,))
