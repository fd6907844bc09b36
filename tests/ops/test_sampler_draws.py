"""What the sampler draws from penalties, biases, a temperature and truncation together, against the distribution that
numpy makes of the definitions in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from octavo.core.params import SamplingParams
from octavo.ops import dispatch
from octavo.sampling.sampler import Sampler
from tests.ops.on_device import IS_INTERPRETED, ON_HOST
from tests.ops.test_sampling import chosen_by_sorting

VOCAB_SIZE = 24
NUM_DRAWS = 100_000  # of each combination
AT_ONCE = 4_000
NUM_INTERPRETED = 5_000  # of all of them together, most of those whose programs are short: 5 ms, not 50
INTERPRETED_WITH = {"top_k": 50, "top_p": 50, "min_p": 150}
# The seeds are fixed, so the draws are the same in every run: what passes once cannot fail by chance. A right sampler
# whose draws are changed, by another generator say, would be refused once in a thousand times.
LEAST_P_VALUE = 1e-3
PROMPT, OUTPUT = [1, 1, 13, 7, 9, 20], [20, 20, 20, 17, 2]
PENALTIES = {"repetition_penalty": 1.4, "frequency_penalty": 0.6, "presence_penalty": -0.8}
BIAS = {13: -1.5, 2: 2.0, 17: -0.75, 21: 4.5, 6: -100.0}

COMBINATIONS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.6, "logit_bias": BIAS},
    {"temperature": 1.8, "min_p": 0.0503, **PENALTIES},
    {"temperature": 0.9, "logit_bias": BIAS, **PENALTIES},
    {"temperature": 1.3, "logit_bias": BIAS, "min_p": 0.1003, "presence_penalty": 1.1},
    {"temperature": 1.7, "top_k": 6, "frequency_penalty": -0.9},
    {"temperature": 1.2, "top_p": 0.8103, "logit_bias": BIAS, "repetition_penalty": 0.7},
    {"temperature": 0.8, "top_k": 9, "top_p": 0.9303, "min_p": 0.0303},
    {"temperature": 1.5, "top_k": 12, "top_p": 0.9003, "min_p": 0.0203, "logit_bias": BIAS, **PENALTIES},
    {"temperature": 0.0, "logit_bias": BIAS, **PENALTIES},
]


# (what batch-invariant mode puts in its place is the same kernels with other tiles: its own tests look at those)
@pytest.fixture(params=[name for name in dispatch.present()["choose_tokens"] if name != "triton_invariant"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    torch.set_num_threads(1)
    dispatch.use((request.param,))
    yield request.param
    dispatch.use((dispatch.SPECIFICATION,))


def wanted(logits: np.ndarray, fields: dict[str, Any]) -> np.ndarray:
    """The definitions, one after the other: bias, penalties, and then what is left of the distribution."""
    params = SamplingParams(**fields)
    values = logits.astype(np.float64)
    for token_id, bias in (params.logit_bias or {}).items():
        values[token_id] += bias
    for token_id in {*PROMPT, *OUTPUT}:
        values[token_id] *= params.repetition_penalty if values[token_id] < 0 else 1 / params.repetition_penalty
    for token_id in set(OUTPUT):
        values[token_id] -= params.frequency_penalty * OUTPUT.count(token_id) + params.presence_penalty
    return chosen_by_sorting(values, params.temperature, params.top_k, params.top_p, params.min_p)


def draw(logits: torch.Tensor, positions: list[range], device: str) -> np.ndarray:
    """How often each combination draws each token, all rows in one batch; `positions` are those of each combination."""
    sampler = Sampler(len(COMBINATIONS), VOCAB_SIZE, device)
    for row, fields in enumerate(COMBINATIONS):
        sampler.add_row(row, SamplingParams(**fields), 1000 + row, PROMPT, OUTPUT, frozenset())
    batch = [(position, row) for row, of_row in enumerate(positions) for position in of_row]
    batch.sort()  # the combinations by turns
    rows = [row for _, row in batch]
    places = torch.tensor([position for position, _ in batch], device=device)
    drawn = sampler.sample(logits.to(device).repeat(len(rows), 1), torch.tensor(rows, device=device), rows, places)
    counts = np.zeros((len(COMBINATIONS), VOCAB_SIZE), dtype=np.int64)
    np.add.at(counts, (np.array(rows), drawn.token_ids.cpu().numpy()), 1)
    return counts


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> tuple[float, int]:
    """(statistic, degrees of freedom); tokens that are expected less than five times count as one."""
    assert counts[probabilities == 0].sum() == 0, "a token that is ruled out was drawn"
    expected = probabilities * counts.sum()
    is_rare = expected < 5
    expected = np.append(expected[~is_rare], expected[is_rare].sum())
    found = np.append(counts[~is_rare], counts[is_rare].sum())
    if expected[-1] < 5:  # not even together: they are left out
        expected, found = expected[:-1], found[:-1]
    return float(((found - expected) ** 2 / expected).sum()), len(expected) - 1


@pytest.mark.slow
def test_draws_follow_the_processed_distribution(implementation: str) -> None:
    torch.manual_seed(21)
    logits = torch.randn(VOCAB_SIZE) * 1.5
    is_slow = IS_INTERPRETED and implementation not in ON_HOST
    device = "cpu" if IS_INTERPRETED or implementation in ON_HOST else "cuda"
    if is_slow:
        sizes = [
            next((size for name, size in INTERPRETED_WITH.items() if name in fields), 0) for fields in COMBINATIONS
        ]
        sizes[-1] = 1  # greedy
        rest = (NUM_INTERPRETED - sum(sizes)) // sizes.count(0) + 1
        counts = draw(logits, [range(size or rest) for size in sizes], device)
        assert counts.sum() >= NUM_INTERPRETED
    else:
        parts = [range(first, first + AT_ONCE) for first in range(0, NUM_DRAWS, AT_ONCE)]
        counts = sum((draw(logits, [part] * len(COMBINATIONS), device) for part in parts), start=np.zeros(()))
    statistics, degrees = 0.0, 0
    for fields, found in zip(COMBINATIONS, counts, strict=True):
        statistic, freedom = chi_square(found, wanted(logits.numpy(), fields))
        statistics, degrees = statistics + statistic, degrees + freedom
        if freedom and not is_slow:
            assert stats.chi2.sf(statistic, freedom) > LEAST_P_VALUE, fields
    assert stats.chi2.sf(statistics, degrees) > LEAST_P_VALUE
