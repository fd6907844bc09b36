"""Sampling ops against plain full-sort formulas in float64, and against transformers' logits processors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from octavo.ops import dispatch
from octavo.ops import sampling as ops
from octavo.ops.torch.sampling import BLOCK, CANDIDATES
from tests.ops.on_device import IS_INTERPRETED, ON_HOST, implementation_of

OPS = (
    "apply_bitmask",
    "apply_penalties",
    "argmax",
    "choose_tokens",
    "gather_logprobs",
    "log_mass",
    "mask_truncated",
    "row_uniform",
    "sample",
    "token_ranks",
)
IMPLEMENTATIONS = [name for name in dispatch.present()["sample"] if name in ON_HOST or not IS_INTERPRETED]
NUM_DRAWS = 100_000


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, params=dispatch.present()["sample"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for op in OPS:
        if request.param not in dispatch.present()[op]:
            continue
        monkeypatch.setattr(dispatch.bound, op, implementation_of(op, request.param))
    return request.param


def is_slow(implementation: str) -> bool:
    """A program of a kernel takes the interpreter up to 0.1 s."""
    return IS_INTERPRETED and implementation not in ON_HOST


def many(test: Callable[..., None]) -> Callable[..., None]:
    """A test of many rows: not for the interpreter."""
    return pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)(test)


def kept_by_sorting(logits: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """The definition: sort the whole row (equal logits by id), then cut."""
    logits = logits.astype(np.float64)
    weights = np.exp(logits - logits.max())
    kept = weights >= min_p
    if 0 < top_k < len(logits):
        kept &= logits >= np.sort(logits)[-top_k]
    if top_p < 1:
        order = np.argsort(-logits, kind="stable")
        weights_in_order = np.where(kept, weights, 0.0)[order]
        before = np.cumsum(weights_in_order) - weights_in_order
        kept[order[before >= top_p * weights_in_order.sum()]] = False
    return kept


def truncate(logits: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    num_rows = logits.shape[0]
    return ops.mask_truncated(
        logits, torch.full((num_rows,), top_k), torch.full((num_rows,), top_p), torch.full((num_rows,), min_p)
    )


# ---- truncation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [7, 300, 5000, 40_003])
@pytest.mark.parametrize("scale", [0.05, 3.0])
def test_truncation_equals_the_sorted_definition(implementation: str, vocab_size: int, scale: float) -> None:
    """Every combination in one batch, so rows settle in different rounds; a small scale is a flat distribution."""
    torch.manual_seed(vocab_size)
    # thresholds away from what a sum could hit exactly; 129 and 1025 are just past what a round looks at
    combinations = [
        (top_k, top_p, min_p)
        for top_k in (0, 1, 5, 128, 129, 1025, vocab_size, 10 * vocab_size)
        for top_p in (1.0, 0.1003, 0.9007)
        for min_p in (0.0, 0.3001)
    ]
    if is_slow(implementation):
        combinations = combinations[vocab_size % 7 :: 11]
    logits = torch.randn(len(combinations), vocab_size) * scale
    top_k, top_p, min_p = (torch.tensor(column) for column in zip(*combinations, strict=True))
    original = logits.clone()
    kept = ops.mask_truncated(logits, top_k, top_p, min_p)
    assert torch.equal(logits, original)
    for row, combination in enumerate(combinations):
        want = kept_by_sorting(logits[row].numpy(), *combination)
        assert np.array_equal(torch.isfinite(kept[row]).numpy(), want), combination
        assert torch.equal(kept[row][want], logits[row][want])


def test_ties_stay_under_top_k_and_go_by_id_under_top_p() -> None:
    tied = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    assert torch.isfinite(truncate(tied, top_k=2)).tolist() == [[False, True, True, True, True, False]]
    flat = torch.zeros(1, 10)
    assert torch.isfinite(truncate(flat, top_p=0.5)).nonzero()[:, 1].tolist() == [0, 1, 2, 3, 4]
    assert torch.isfinite(truncate(flat, top_k=3)).all()
    assert torch.isfinite(truncate(torch.zeros(1, 3000), top_k=100)).all()
    # a run of equal logits longer than the first list of candidates
    long_run = torch.zeros(1, 3000)
    long_run[0, 2999] = 1.0
    kept = torch.isfinite(truncate(long_run, top_p=0.25))[0].numpy()
    assert np.array_equal(kept, kept_by_sorting(long_run[0].numpy(), 0, 0.25, 0.0))
    assert kept[2999] and not kept[2998] and kept[: kept.sum() - 1].all()


def test_coarse_logits_with_many_ties_equal_the_definition(implementation: str) -> None:
    torch.manual_seed(3)
    logits = (torch.randn(2 if is_slow(implementation) else 12, 4000) * 2).bfloat16().float()
    for top_k, top_p in ((0, 0.5003), (200, 0.9001), (17, 1.0), (0, 0.9901)):
        kept = torch.isfinite(truncate(logits, top_k=top_k, top_p=top_p))
        for row in range(len(logits)):
            assert np.array_equal(kept[row].numpy(), kept_by_sorting(logits[row].numpy(), top_k, top_p, 0.0))


def test_masked_tokens_stay_masked_and_broken_rows_harm_nobody() -> None:
    torch.manual_seed(4)
    logits = torch.randn(4, 2000)
    logits[0, ::2] = -torch.inf
    logits[1, 17] = torch.nan
    logits[2] = -torch.inf
    alone = truncate(logits[3:], top_p=0.9)
    for kept in (truncate(logits, top_p=0.9), truncate(logits, top_k=40), truncate(logits, top_k=1999, min_p=0.01)):
        assert torch.isneginf(kept[0, ::2]).all() and torch.isfinite(kept[0, 1::2]).any()
        assert torch.isneginf(kept[1:3]).all()
    assert torch.equal(truncate(logits, top_p=0.9)[3:], alone)


@pytest.mark.parametrize("vocab_size", [40 * BLOCK * CANDIDATES[0] + 3, 4000])
def test_a_row_with_few_tokens_left(implementation: str, vocab_size: int) -> None:
    """Fewer than the first list of candidates, one of them the last of the vocabulary."""
    if is_slow(implementation):
        vocab_size = min(vocab_size, 4000 + vocab_size % BLOCK)
    logits = torch.full((1, vocab_size), -torch.inf)
    logits[0, [4, 900, vocab_size - 1]] = torch.tensor([1.0, 0.5, 2.0])
    assert torch.equal(truncate(logits, top_k=50, top_p=0.9999), logits)
    assert torch.equal(truncate(logits, min_p=0.01), logits)
    assert torch.isfinite(truncate(logits, top_k=2)).nonzero()[:, 1].tolist() == [4, vocab_size - 1]
    token_ids, _, _ = ops.gather_logprobs(logits, torch.tensor([4]), 40)
    assert token_ids[0, 1:4].tolist() == [vocab_size - 1, 4, 900]
    assert len(set(token_ids[0, 1:].tolist())) == 40


@pytest.mark.parametrize("implementation", ["torch"], indirect=True)
def test_likely_rows_are_not_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the growing list is for."""
    sorted_sizes: list[int] = []
    plain_sort = Tensor.sort
    monkeypatch.setattr(
        Tensor,
        "sort",
        lambda self, *args, **kwargs: (sorted_sizes.append(self.shape[-1]), plain_sort(self, *args, **kwargs))[1],
    )
    torch.manual_seed(5)
    truncate(torch.randn(2, 50_000) * 5, top_k=50, top_p=0.9)
    assert sorted_sizes and max(sorted_sizes) == CANDIDATES[0]


# ---- the draw --------------------------------------------------------------------------------------------------------


def chi_square(token_ids: Tensor, probabilities: np.ndarray) -> float:
    """The p-value of the draws under `probabilities`; tokens of probability 0 must not occur."""
    counts = np.bincount(token_ids.numpy(), minlength=len(probabilities))
    assert counts[probabilities == 0].sum() == 0
    possible = probabilities > 0
    expected = probabilities[possible] / probabilities[possible].sum() * counts.sum()
    return float(stats.chisquare(counts[possible], expected).pvalue)


@many
@pytest.mark.parametrize("vocab_size", [5, BLOCK, 2 * BLOCK + 9])
def test_draws_follow_softmax(vocab_size: int) -> None:
    torch.manual_seed(6)
    logits = torch.randn(1, vocab_size)
    logits[0, 2] = -torch.inf
    uniform = ops.row_uniform(torch.arange(NUM_DRAWS), torch.zeros(NUM_DRAWS, dtype=torch.int64))
    drawn = torch.cat([ops.sample(logits.expand(part.numel(), -1), part) for part in uniform.split(20_000)])
    assert chi_square(drawn, torch.softmax(logits[0].double(), -1).numpy()) > 1e-3


def test_draws_invert_the_distribution_exactly(implementation: str) -> None:
    """Token i owns [sum of the probabilities before it, that plus its own), also at the ends and across blocks."""
    vocab_size = 2 * BLOCK
    tokens = torch.arange(vocab_size)
    if is_slow(implementation):
        tokens = torch.tensor([0, 1, 77, BLOCK - 2, BLOCK - 1, BLOCK, BLOCK + 1, 200, vocab_size - 1])
    uniform = tokens.double() / vocab_size
    rows = torch.zeros(1, vocab_size).expand(len(tokens), -1)
    assert torch.equal(ops.sample(rows, uniform), tokens)
    assert torch.equal(ops.sample(rows, uniform + 0.999 / vocab_size), tokens)
    ends = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]]).expand(2, -1)
    assert ops.sample(ends, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 2]


def test_rare_tokens_are_drawn_as_often_as_they_should() -> None:
    """A likelihood that float32 sums over the row would lose: token 1 owns [1 - 2**-30, 1)."""
    logits = torch.tensor([[0.0, -30 * np.log(2)]], dtype=torch.float32).expand(2, -1)
    drawn = ops.sample(logits, torch.tensor([1 - 2.0**-29, 1 - 2.0**-31], dtype=torch.float64))
    assert drawn.tolist() == [0, 1]


def test_broken_rows_give_some_token_of_the_vocabulary() -> None:
    logits = torch.randn(5, 3 * BLOCK + 1)
    logits[0] = torch.nan
    logits[1] = -torch.inf
    logits[2, 5] = torch.inf
    logits[3, -1] = torch.nan
    for uniform in (0.0, 0.5, 1 - 2**-53):
        drawn = ops.sample(logits, torch.full((5,), uniform, dtype=torch.float64))
        assert ((drawn >= 0) & (drawn < logits.shape[1])).all()


@pytest.mark.parametrize("vocab_size", [10, 4 * BLOCK, 10 * BLOCK + 3])
def test_argmax(vocab_size: int) -> None:
    torch.manual_seed(7)
    logits = torch.randn(20, vocab_size).round(decimals=1)  # with ties
    logits[3, :] = -torch.inf
    logits[4, vocab_size - 1] = 99.0
    logits[5, 4] = torch.nan
    token_ids, greatest = ops.argmax(logits)
    sound = torch.arange(20) != 5
    first = (logits == logits.amax(-1, keepdim=True)).int().argmax(-1)
    assert torch.equal(token_ids[sound], first[sound])
    assert torch.equal(greatest[sound], logits.amax(-1)[sound])
    assert torch.isnan(greatest[5]) and 0 <= token_ids[5] < vocab_size


CHOICES = [  # temperature, top_k, top_p, min_p
    (1.0, 0, 1.0, 0.0),
    (0.0, 3, 0.5, 0.1),
    (0.7, 5, 1.0, 0.0),
    (1.5, 0, 0.8003, 0.0),
    (1.0, 0, 1.0, 0.1003),
    (2.0, 9, 0.7003, 0.0),
    (1.3, 12, 0.9003, 0.0503),
    (0.2, 10_000, 0.4003, 0.0),
]


def chosen_by_sorting(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """The probability of each token."""
    if temperature == 0:
        return np.eye(len(logits))[logits.argmax()]
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max()) * kept_by_sorting(scaled, top_k, top_p, min_p)
    return weights / weights.sum()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(11, torch.bfloat16), (11, torch.float32), (1000, torch.float32)])
def test_choices_invert_what_is_left_of_the_distribution(
    implementation: str, vocab_size: int, dtype: torch.dtype
) -> None:
    """Rows of all kinds in one batch, by the definition."""
    torch.manual_seed(11)
    kinds = CHOICES if is_slow(implementation) else 20 * CHOICES
    logits = (torch.randn(len(kinds), vocab_size) * 2).to(dtype)
    temperature, top_k, top_p, min_p = (torch.tensor(column) for column in zip(*kinds, strict=True))
    seeds, positions = torch.randint(-(2**63), 2**63 - 1, (len(kinds),)), torch.arange(len(kinds)) * 1000
    ids, greatest = ops.choose_tokens(logits, temperature, top_k, top_p, min_p, seeds, positions)
    assert (ids.dtype, greatest.dtype) == (torch.int64, torch.float32)
    for row, kind in enumerate(kinds):
        probabilities = chosen_by_sorting(logits[row].float().numpy(), *kind)
        uniform = splitmix64(int(seeds[row]) % 2**64, int(positions[row]))
        end = probabilities.cumsum()
        assert ids[row] == np.flatnonzero((end > uniform) & (probabilities > 0))[0], kind
    scaled = logits.float().amax(-1) / torch.where(temperature == 0, 1.0, temperature)
    torch.testing.assert_close(greatest, scaled)


@many
@pytest.mark.parametrize("kind", CHOICES)
def test_choices_follow_what_is_left_of_the_distribution(kind: tuple[float, int, float, float]) -> None:
    torch.manual_seed(12)
    num_draws = 5000
    logits = torch.randn(1, 300)
    columns = (torch.full((num_draws,), value) for value in kind)
    counter = torch.arange(num_draws)
    ids, _ = ops.choose_tokens(logits.expand(num_draws, -1), *columns, counter, torch.full_like(counter, 9))
    probabilities = chosen_by_sorting(logits[0].numpy(), *kind)
    if kind[0] == 0:
        assert (ids == logits.argmax()).all()
    else:
        assert chi_square(ids, probabilities) > 1e-3


def test_broken_rows_are_shown_and_harm_nobody() -> None:
    torch.manual_seed(13)
    logits = torch.randn(5, 700)
    alone = logits.clone()
    logits[0, 3], logits[1, 699], logits[2] = torch.nan, torch.inf, -torch.inf
    ones, zeros, rows = torch.ones(5), torch.zeros(5), torch.arange(5)
    temperature, top_k = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]), torch.tensor([0, 5, 5, 5, 5])
    ids, greatest = ops.choose_tokens(logits, temperature, top_k, ones * 0.9, zeros, rows, rows)
    assert ((ids >= 0) & (ids < 700)).all()
    assert torch.isfinite(greatest).tolist() == [False, False, False, True, True]
    expected, _ = ops.choose_tokens(alone, temperature, top_k, ones * 0.9, zeros, rows, rows)
    assert torch.equal(ids[3:], expected[3:])


# ---- random numbers --------------------------------------------------------------------------------------------------


def splitmix64(seed: int, position: int) -> float:
    """In Python's unbounded integers."""
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(value: int) -> int:
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        return value ^ (value >> 31)

    return (mix((mix((seed + golden) & mask) + (position + 1) * golden) & mask) >> 11) / 2**53


def test_row_uniform_equals_splitmix64_at_the_borders_of_int64() -> None:
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF]
    positions = [0, 1, 2**31, 2**62]
    pairs = [(seed, position) for seed in seeds for position in positions]
    drawn = ops.row_uniform(*(torch.tensor(column, dtype=torch.int64) for column in zip(*pairs, strict=True)))
    assert drawn.tolist() == [splitmix64(seed % 2**64, position) for seed, position in pairs]


@many
@pytest.mark.parametrize("along", ["seeds", "positions"])
def test_row_uniform_is_uniform_and_uncorrelated(along: str) -> None:
    counter, zero = torch.arange(NUM_DRAWS), torch.full((NUM_DRAWS,), 3)
    pair = (counter, zero) if along == "seeds" else (zero, counter)
    drawn = ops.row_uniform(*pair)
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert stats.kstest(drawn.numpy(), "uniform").pvalue > 1e-3
    neighbours = np.histogram2d(drawn[:-1].numpy(), drawn[1:].numpy(), bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(neighbours.ravel()).pvalue > 1e-3


def test_row_uniform_has_no_shifted_streams() -> None:
    """Seeds that differ by the generator's own increment must not draw the same numbers one position later."""
    golden = 0x9E3779B97F4A7C15 - 2**64
    seeds, positions = torch.tensor([5, 5 + golden]), torch.arange(64)
    first, second = (ops.row_uniform(seed.expand(64), positions) for seed in seeds)
    assert len(set(first.tolist()) | set(second.tolist())) == 128


# ---- log-probabilities -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [11, 20_001])
@pytest.mark.parametrize("num_top", [0, 1, 5, 11])
def test_logprobs_and_ranks_against_the_formula(vocab_size: int, num_top: int) -> None:
    torch.manual_seed(8)
    logits = torch.randn(6, vocab_size) * 4
    chosen = torch.randint(vocab_size, (6,))
    token_ids, logprobs, ranks = ops.gather_logprobs(logits, chosen, num_top)
    assert token_ids.shape == logprobs.shape == ranks.shape == (6, 1 + num_top)
    assert (token_ids.dtype, logprobs.dtype, ranks.dtype) == (torch.int64, torch.float32, torch.int64)
    want = torch.log_softmax(logits.double(), -1)
    torch.testing.assert_close(logprobs.double(), want.gather(1, token_ids), rtol=1e-6, atol=2e-6)
    assert torch.equal(token_ids[:, 0], chosen)
    assert torch.equal(token_ids[:, 1:], logits.argsort(-1, descending=True)[:, :num_top])
    for row in range(6):
        for token_id, rank in zip(token_ids[row].tolist(), ranks[row].tolist(), strict=True):
            assert rank == 1 + int((logits[row] > logits[row, token_id]).sum())


def test_equal_logits_share_a_rank_and_num_top_stops_at_the_vocabulary() -> None:
    logits = torch.tensor([[2.0, 5.0, 2.0, 2.0, 1.0]])
    token_ids, logprobs, ranks = ops.gather_logprobs(logits, torch.tensor([3]), 9)
    assert ranks.tolist() == [[2, 1, 2, 2, 2, 5]]
    assert sorted(token_ids[0, 1:].tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(logprobs[0, 1:].sort(descending=True).values, logprobs[0, 1:])


# ---- against transformers --------------------------------------------------------------------------------------------


def test_penalties_against_transformers_and_the_definition() -> None:
    torch.manual_seed(9)
    num_rows, vocab_size = 16, 200
    logits = torch.randn(num_rows, vocab_size) * 3
    prompt, output = torch.randint(vocab_size, (num_rows, 30)), torch.randint(20, (num_rows, 25))
    prompt_mask = torch.zeros(num_rows, vocab_size, dtype=torch.bool).scatter_(1, prompt, True)
    counts = torch.zeros(num_rows, vocab_size, dtype=torch.int32)
    counts.scatter_add_(1, output, torch.ones_like(output, dtype=torch.int32))
    repetition = torch.rand(num_rows) * 1.5 + 0.5
    zero = torch.zeros(num_rows)
    penalised = ops.apply_penalties(logits, prompt_mask, counts, repetition, zero, zero)
    for row in range(num_rows):
        processor = RepetitionPenaltyLogitsProcessor(float(repetition[row]))
        want = processor(torch.cat([prompt[row], output[row]])[None], logits[row : row + 1])
        torch.testing.assert_close(penalised[row : row + 1], want)

    frequency, presence = torch.rand(num_rows) * 4 - 2, torch.rand(num_rows) * 4 - 2
    both = ops.apply_penalties(logits, prompt_mask, counts, repetition, frequency, presence)
    want = penalised.clone()
    for row in range(num_rows):
        for token_id in set(output[row].tolist()):
            times = output[row].tolist().count(token_id)
            want[row, token_id] -= frequency[row] * times + presence[row]
    torch.testing.assert_close(both, want)

    slots = torch.randperm(num_rows)
    at_slots = ops.apply_penalties(
        logits, prompt_mask[slots.argsort()], counts[slots.argsort()], repetition, frequency, presence, slots
    )
    assert torch.equal(at_slots, both)


@pytest.mark.parametrize("vocab_size", [50, 3000])
def test_truncation_against_transformers(implementation: str, vocab_size: int) -> None:
    torch.manual_seed(10)
    for top_k, top_p, min_p, temperature in (
        (5, 0.8003, 0.0, 0.7),
        (0, 0.3001, 0.0, 1.3),
        (40, 1.0, 0.0, 1.0),
        (0, 1.0, 0.1003, 2.0),
    ):
        logits = torch.randn(2 if is_slow(implementation) else 8, vocab_size) * 3
        want = TemperatureLogitsWarper(temperature)(None, logits)
        if min_p:
            want = MinPLogitsWarper(min_p)(None, want)
        if top_k:
            want = TopKLogitsWarper(top_k)(None, want)
        if top_p < 1:
            want = TopPLogitsWarper(top_p)(None, want)
        torch.testing.assert_close(truncate(logits / temperature, top_k, top_p, min_p), want)


@pytest.mark.parametrize("vocab_size", [5, 32, 100])
@pytest.mark.parametrize("rows", [[0, 1, 2], [2]])
def test_a_bit_of_zero_rules_a_token_out(vocab_size: int, rows: list[int]) -> None:
    allowed = torch.rand(len(rows), vocab_size, generator=torch.Generator().manual_seed(1)) < 0.5
    words = torch.zeros(len(rows), -(-vocab_size // 32), dtype=torch.int64)
    for token_id in range(vocab_size):
        words[:, token_id // 32] |= allowed[:, token_id].long() << token_id % 32
    logits = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(2))
    expected = logits.clone()
    for row, keeps in zip(rows, allowed, strict=True):
        expected[row, ~keeps] = -torch.inf
    ops.apply_bitmask(logits, torch.tensor(rows), words.to(torch.int32))
    assert torch.equal(logits, expected)


def test_ranks_of_chosen_tokens_count_the_likelier_ones() -> None:
    torch.manual_seed(31)
    logits = (torch.randn(5, 700) * 3).round()  # many equal ones
    logits[2, :650] = -torch.inf
    token_ids = torch.randint(0, 700, (5, 40))
    ranks = ops.token_ranks(logits, token_ids)
    want = 1 + (logits.numpy()[:, None, :] > logits.gather(1, token_ids).numpy()[:, :, None]).sum(-1)
    assert ranks.dtype == torch.int64 and np.array_equal(ranks.numpy(), want)
    assert ops.token_ranks(logits, token_ids[:, :0]).shape == (5, 0)


@many
def test_log_mass() -> None:
    logits = torch.randn(6, 3001, generator=torch.Generator().manual_seed(8)) * 5
    logits[1, 7:], logits[2] = -torch.inf, -torch.inf
    expected = logits.double().exp().sum(-1, keepdim=True).log()
    torch.testing.assert_close(ops.log_mass(logits).double(), expected, atol=2e-6, rtol=1e-6)
    assert ops.log_mass(logits[:0]).shape == (0, 1)
