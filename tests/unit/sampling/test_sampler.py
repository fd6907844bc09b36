"""The sampler's rows: each draws from its own processed distribution, and nothing else in the batch matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from octavo.core.params import SamplingParams
from octavo.ops import dispatch
from octavo.ops import sampling as ops
from octavo.sampling.sampler import Sampler, SamplerOutput

VOCAB_SIZE = 24
NUM_DRAWS = 100_000
EOS = frozenset({2})


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def add(
    sampler: Sampler, row: int, seed: int = 1, prompt: tuple[int, ...] = (), output: tuple[int, ...] = (), **fields: Any
) -> None:
    sampler.add_row(row, SamplingParams(max_tokens=None, **fields), seed, list(prompt), list(output), EOS)


def run(sampler: Sampler, logits: Tensor, rows: list[int], positions: list[int] | int = 0) -> SamplerOutput:
    if isinstance(positions, int):
        positions = [positions] * len(rows)
    return sampler.sample(logits.clone(), torch.tensor(rows), rows, torch.tensor(positions))


def processed(logits: Tensor, params: SamplingParams, prompt: tuple[int, ...], output: tuple[int, ...]) -> np.ndarray:
    """The distribution by the definitions, token by token, in float64."""
    values = logits.double().numpy().copy()
    for token_id in range(len(values)):
        if token_id in prompt or token_id in output:
            values[token_id] *= 1 / params.repetition_penalty if values[token_id] > 0 else params.repetition_penalty
        values[token_id] -= params.frequency_penalty * output.count(token_id)
        values[token_id] -= params.presence_penalty * (token_id in output)
    values /= params.temperature
    weights = np.exp(values - values.max())
    weights[weights < params.min_p] = 0
    if params.top_k:
        weights[weights < np.sort(weights)[-params.top_k]] = 0
    order = np.argsort(-weights)
    before = np.cumsum(weights[order]) - weights[order]
    weights[order[before >= params.top_p * weights.sum()]] = 0
    return weights / weights.sum()


# ---- what is drawn ---------------------------------------------------------------------------------------------------

PENALTIES = {"repetition_penalty": 1.4, "frequency_penalty": 0.6, "presence_penalty": -0.8}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7, "top_k": 6},
        {"top_p": 0.81},
        {"min_p": 0.12},
        {"temperature": 0.8, "top_k": 9, "top_p": 0.93, "min_p": 0.03},
        PENALTIES,
        {**PENALTIES, "temperature": 1.5, "top_k": 12, "top_p": 0.9},
    ],
    ids=str,
)
def test_draws_follow_the_processed_distribution(fields: dict[str, float]) -> None:
    torch.manual_seed(11)
    logits = torch.randn(VOCAB_SIZE) * 1.5
    prompt, output = (1, 1, 5, 7, 9), (5, 5, 5, 8, 11)
    sampler = Sampler(4, VOCAB_SIZE, "cpu")
    add(sampler, 3, seed=42, prompt=prompt, output=output, **fields)
    drawn = run(sampler, logits.expand(NUM_DRAWS, -1), [3] * NUM_DRAWS, list(range(NUM_DRAWS))).token_ids
    want = processed(logits, SamplingParams(**fields), prompt, output)  # type: ignore[arg-type]
    counts = np.bincount(drawn.numpy(), minlength=VOCAB_SIZE)
    assert counts[want == 0].sum() == 0
    assert stats.chisquare(counts[want > 0], want[want > 0] * NUM_DRAWS).pvalue > 1e-3


MIXED: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.7, "top_p": 0.8, "logprobs": 2},
    {"top_k": 5, "repetition_penalty": 1.3},
    {"temperature": 0.0, "presence_penalty": 1.5, "min_tokens": 4},
    {"min_p": 0.05, "min_tokens": 9, "logprobs": 0},
    {"temperature": 1.9, "top_k": 3, "frequency_penalty": -1.0},
    {"temperature": 0.0, "logprobs": 4},
]


def test_a_row_draws_the_same_whatever_else_is_in_the_batch() -> None:
    """Eight steps of all rows together, then each row alone, at another place in the table, preempted on the way."""
    torch.manual_seed(12)
    steps = torch.randn(8, len(MIXED), VOCAB_SIZE) * 2
    together = Sampler(16, VOCAB_SIZE, "cpu")
    for i, fields in enumerate(MIXED):
        add(together, i, seed=100 + i, prompt=(i, 3), **fields)
    order = [5, 0, 7, 2, 4, 1, 6, 3]
    chosen = torch.zeros(8, len(MIXED), dtype=torch.int64)
    for step in range(8):
        batch = order if step % 2 else sorted(order)
        chosen[step, batch] = run(together, steps[step, batch], batch, step).token_ids
    assert len(set(chosen[:, 1].tolist())) > 2

    for i, fields in enumerate(MIXED):
        alone = Sampler(16, VOCAB_SIZE, "cpu")
        add(alone, 15 - i, seed=100 + i, prompt=(i, 3), **fields)
        row = 15 - i
        outputs: list[int] = []
        for step in range(8):
            if step == 5:
                alone.remove_row(row)
                row = 7
                add(alone, row, seed=100 + i, prompt=(i, 3), output=tuple(outputs), **fields)
            outputs.append(int(run(alone, steps[step, i : i + 1], [row], step).token_ids))
        assert outputs == chosen[:, i].tolist(), fields


def test_seeds_and_positions_make_the_draw() -> None:
    sampler = Sampler(4, 1000, "cpu")
    for row, seed in enumerate((7, 7, 8, 7 + 2**64)):
        add(sampler, row, seed=seed)
    logits = torch.zeros(4, 1000)
    first, second = (run(sampler, logits, [0, 1, 2, 3], position).token_ids.tolist() for position in (0, 1))
    assert first[0] == first[1] == first[3] != first[2]
    assert first != second


def test_the_outermost_parameters_still_draw() -> None:
    """What float32 rounds to 0, 1 or infinity must not fail the row, let alone the step."""
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 5], logits[0, 6] = 3.0, -torch.inf
    for fields, want in (
        ({"top_p": 1e-300}, {5}),
        ({"top_p": 1 - 2**-53}, set(range(VOCAB_SIZE)) - {6}),
        ({"min_p": 1.0}, {5}),
        ({"top_k": 2**62}, set(range(VOCAB_SIZE)) - {6}),
        ({"temperature": 1e300}, set(range(VOCAB_SIZE)) - {6}),
        ({"repetition_penalty": 1e6}, set(range(VOCAB_SIZE)) - {6}),
    ):
        sampler = Sampler(1, VOCAB_SIZE, "cpu")
        add(sampler, 0, prompt=(5,), **fields)
        output = run(sampler, logits.expand(2000, -1), [0] * 2000, list(range(2000)))
        assert not output.nan.any(), fields
        assert set(output.token_ids.tolist()) == want, fields


def test_a_reused_row_forgets_its_last_request() -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 2], logits[0, 3], logits[0, 4] = 5.0, 4.9, 4.8
    sampler = Sampler(2, VOCAB_SIZE, "cpu")
    add(sampler, 1, temperature=0.0, min_tokens=9, repetition_penalty=2.0, prompt=(3,), logprobs=3)
    output = run(sampler, logits, [1])
    assert (output.token_ids.tolist(), len(output.logprobs)) == ([4], 1)
    add(sampler, 1, temperature=0.0)
    output = run(sampler, logits, [1])
    assert (output.token_ids.tolist(), output.logprobs) == ([2], [])
    assert not sampler._split([1]).changes_logits


# ---- counts on the device --------------------------------------------------------------------------------------------


def test_a_sampled_token_counts_in_the_next_step_without_the_host() -> None:
    """Greedy with a frequency penalty of 1: the favourite falls behind after each time it was chosen."""
    sampler = Sampler(8, VOCAB_SIZE, "cpu")
    add(sampler, 5, temperature=0.0, frequency_penalty=1.0, output=(6,))
    add(sampler, 2, temperature=0.0)
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[:, 6], logits[:, 7] = 3.0, 1.5
    chosen = [run(sampler, logits, [5, 2], 1 + step).token_ids.tolist() for step in range(5)]
    # 6 was there once: 2.0 against 1.5, then 1.0 against 1.5, 1.0 against 0.5, 0 against 0.5, 0 against -0.5
    assert [row[0] for row in chosen] == [6, 7, 6, 7, 0]
    assert [row[1] for row in chosen] == [6] * 5


def test_many_penalised_rows_come_and_go() -> None:
    """Slots are taken, doubled, reused and given back; a row keeps its own counts through it."""
    sampler = Sampler(64, VOCAB_SIZE, "cpu")
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 3] = 1.0
    add(sampler, 0, temperature=0.0, presence_penalty=2.0)
    assert run(sampler, logits, [0]).token_ids.tolist() == [3]
    for row in range(1, 40):
        add(sampler, row, temperature=0.0, presence_penalty=2.0, output=(3,) * (row % 2))
    everybody = run(sampler, logits.expand(39, -1), list(range(1, 40))).token_ids.tolist()
    assert everybody == [0 if row % 2 else 3 for row in range(1, 40)]
    assert run(sampler, logits, [0], 1).token_ids.tolist() == [0]
    for row in range(1, 40):
        sampler.remove_row(row)
    for row in range(1, 40):
        add(sampler, row, temperature=0.0, repetition_penalty=2.0, prompt=(4,))
        sampler.remove_row(row)
    logits[0, 4] = 0.9
    for row in range(1, 40):
        add(sampler, row, temperature=0.0, repetition_penalty=1.5, prompt=(3,))
    assert run(sampler, logits.expand(39, -1), list(range(1, 40))).token_ids.tolist() == [4] * 39
    for row in range(40):
        sampler.remove_row(row)
    assert sampler._counts.num_slots == 0


def test_token_ids_outside_the_vocabulary_are_nobodys_penalty() -> None:
    sampler = Sampler(2, VOCAB_SIZE, "cpu")
    add(sampler, 0, temperature=0.0, repetition_penalty=1.5, prompt=(-1, VOCAB_SIZE, 999_999, 3))
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 3], logits[0, 4] = 1.0, 0.9
    assert run(sampler, logits, [0]).token_ids.tolist() == [4]


# ---- min_tokens ------------------------------------------------------------------------------------------------------


def test_stops_are_held_back_until_min_tokens_by_the_position_on_the_device() -> None:
    sampler = Sampler(8, VOCAB_SIZE, "cpu")
    add(sampler, 0, temperature=0.0, min_tokens=2)
    add(sampler, 1, temperature=0.0, min_tokens=3, stop_token_ids=[4, 5, VOCAB_SIZE + 1])  # widens the table
    add(sampler, 2, temperature=0.0)
    logits = torch.zeros(3, VOCAB_SIZE)
    logits[:, 2], logits[:, 4], logits[:, 5], logits[:, 0] = 5.0, 4.0, 3.0, 2.0
    logits[0, 0] = 4.5  # not row 0's to hold back
    chosen = [run(sampler, logits, [0, 1, 2], position).token_ids.tolist() for position in range(4)]
    assert chosen == [[0, 0, 2], [0, 0, 2], [2, 0, 2], [2, 2, 2]]


def test_held_back_tokens_are_never_drawn() -> None:
    sampler = Sampler(1, VOCAB_SIZE, "cpu")
    add(sampler, 0, min_tokens=500, stop_token_ids=[7], top_p=0.9)
    logits = torch.zeros(1000, VOCAB_SIZE)
    logits[:, 2] = logits[:, 7] = 3.0
    drawn = run(sampler, logits, [0] * 1000, list(range(1000))).token_ids
    stops = (drawn == 2) | (drawn == 7)
    assert not stops[:500].any() and stops[500:].float().mean() > 0.5


# ---- log-probabilities -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("everybody", [True, False])
def test_logprobs_are_the_models_own(everybody: bool) -> None:
    """Before penalties, masks and temperature; each row as many as it asked for."""
    torch.manual_seed(13)
    logits = torch.randn(4, VOCAB_SIZE) * 2
    sampler = Sampler(8, VOCAB_SIZE, "cpu")
    asked = {0: 0, 1: 3, 2: -1, 3: 20}
    for row, num_top in asked.items():
        add(
            sampler,
            row,
            temperature=0.4,
            top_k=4,
            repetition_penalty=1.8,
            prompt=(1, 2),
            min_tokens=5,
            logprobs=num_top,
        )
    rows = [3, 1, 0, 2]
    if not everybody:
        add(sampler, 5)
        rows.insert(1, 5)
        logits = torch.cat([logits[:1], torch.randn(1, VOCAB_SIZE), logits[1:]])
    output = run(sampler, logits, rows)
    want = torch.log_softmax(logits.double(), -1)
    seen = {}
    for block in output.logprobs:
        for i, found in block.rows():
            seen[rows[i]] = len(found.token_ids) - 1
            assert found.token_ids[0] == int(output.token_ids[i])
            assert found.token_ids[1:] == want[i].argsort(descending=True)[: seen[rows[i]]].tolist()
            assert found.logprobs == pytest.approx([float(want[i, token_id]) for token_id in found.token_ids], abs=1e-5)
            assert found.ranks == [1 + int((want[i] > want[i, token_id]).sum()) for token_id in found.token_ids]
    assert seen == {0: 0, 1: 3, 2: VOCAB_SIZE, 3: 20}


def test_a_request_for_the_whole_vocabulary_does_not_widen_its_neighbours() -> None:
    sampler = Sampler(4, 500, "cpu")
    for row, num_top in enumerate((5, -1, 7)):
        add(sampler, row, logprobs=num_top)
    blocks = run(sampler, torch.randn(3, 500), [0, 1, 2]).logprobs
    assert {tuple(block.batch_idx): block.logprobs.shape[1] for block in blocks} == {(0, 2): 8, (1,): 501}


# ---- broken rows, and code that must not run -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{"temperature": 0.0}, {}, {"top_p": 0.9}, PENALTIES, {"min_tokens": 3, "logprobs": 2}]
)
def test_a_broken_row_is_flagged_and_harms_nobody(fields: dict[str, Any]) -> None:
    torch.manual_seed(14)
    logits = torch.randn(5, VOCAB_SIZE)
    broken = logits.clone()
    broken[1] = torch.nan
    broken[2] = -torch.inf
    broken[3, 9] = torch.nan
    results = []
    for batch in (logits, broken):
        sampler = Sampler(8, VOCAB_SIZE, "cpu")
        for row in range(4):
            add(sampler, row, seed=row, **fields)
        add(sampler, 4, temperature=0.0)
        results.append(run(sampler, batch, [0, 1, 2, 3, 4]))
    sound, hurt = results
    assert sound.nan.tolist() == [False] * 5
    assert hurt.nan.tolist() == [False, True, True, True, False]
    assert hurt.token_ids[[0, 4]].tolist() == sound.token_ids[[0, 4]].tolist()
    assert ((hurt.token_ids >= 0) & (hurt.token_ids < VOCAB_SIZE)).all()


@pytest.mark.parametrize("neighbours", [0, 1])
def test_a_row_that_its_temperature_overflows_is_flagged(neighbours: int) -> None:
    sampler = Sampler(4, VOCAB_SIZE, "cpu")
    add(sampler, 0, temperature=0.01)
    add(sampler, 1, temperature=0.0)
    logits = torch.full((1 + neighbours, VOCAB_SIZE), 3e37)
    output = run(sampler, logits, [0, 1][: 1 + neighbours])
    assert output.nan.tolist() == [True, False][: 1 + neighbours]
    assert 0 <= output.token_ids[0] < VOCAB_SIZE


@pytest.mark.parametrize("fields", [{"temperature": 0.5}, {"temperature": 0.5, "top_k": 3}, {"temperature": 0.0}])
def test_only_what_somebody_uses_runs(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> None:
    called: list[str] = []
    monkeypatch.setattr(dispatch, "is_specialised", lambda op: False)  # one op would do it all
    for name in ("apply_penalties", "mask_truncated", "argmax", "sample", "row_uniform", "gather_logprobs"):
        op = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *args, op=op, name=name: (called.append(name), op(*args))[1])
    sampler = Sampler(4, VOCAB_SIZE, "cpu")
    add(sampler, 0, **fields)
    run(sampler, torch.randn(1, VOCAB_SIZE), [0])
    if not fields["temperature"]:
        assert called == ["argmax"]
    else:
        assert called == [*(["mask_truncated"] if "top_k" in fields else []), "row_uniform", "sample"]


def test_an_empty_batch_gives_nothing() -> None:
    sampler = Sampler(4, VOCAB_SIZE, "cpu")
    add(sampler, 0)
    output = sampler.sample(torch.zeros(0, VOCAB_SIZE), torch.zeros(0, dtype=torch.int64), [], torch.zeros(0))
    assert (output.token_ids.shape, output.nan.shape, output.logprobs) == ((0,), (0,), [])
