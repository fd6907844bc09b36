"""Slices: how much of the logits exists at once, and that where they are cut does not matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo.core.params import SamplingParams
from octavo.core.prompt_logprobs import PromptRows
from octavo.sampling.prompt_logprobs import SLICE_BYTES, PromptScorer, Segment

VOCAB_SIZE, HIDDEN = 200, 8
HEAD = torch.randn(HIDDEN, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))


def scored(scorer: PromptScorer, hidden: torch.Tensor, segments: list[Segment]) -> dict[str, PromptRows | None]:
    return {name: rows for block in scorer.score(hidden, segments) for name, rows in block.rows(block.tensors)}


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, (8, 40), dtype=torch.int32, generator=torch.Generator().manual_seed(1))


def wants(scorer: PromptScorer) -> list[Segment]:
    """Rows of all kinds, with parts of their prompts in one step."""
    each = [[i, i + 1] for i in range(20)]
    wanted: list[dict[str, Any]] = [
        {"prompt_logprobs": 2},
        {"prompt_logprobs": -1},
        {"prompt_logprobs": 0, "prompt_logprob_token_ids": [7, 3], "prompt_logprob_start": 4},
        {"prompt_logprob_token_ids": each, "prompt_logprob_start": 9},
        {"prompt_logprobs": 5, "logprobs_mode": "raw_logits", "prompt_logprob_token_ids": [1]},
        {"prompt_logprobs": 40},
    ]
    segments, start = [], 3
    for row, fields in enumerate(wanted):
        scorer.add_row(row, SamplingParams(**fields), 35)
        segments.append(Segment(str(row), row, start, 2 * row, 2 * row + 11))
        start += 11
    return segments


@pytest.mark.parametrize("size", [1, 3, 11, 30])
def test_where_slices_are_cut_does_not_matter(tokens: torch.Tensor, size: int) -> None:
    hidden = torch.randn(80, HIDDEN, generator=torch.Generator().manual_seed(2))
    results = []
    for slice_bytes in (SLICE_BYTES, 4 * VOCAB_SIZE * size):
        sizes: list[int] = []

        def logits(rows: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(len(rows))
            return rows @ HEAD

        scorer = PromptScorer(VOCAB_SIZE, logits, tokens, slice_bytes)
        results.append(scored(scorer, hidden, wants(scorer)))
        assert max(sizes) <= max(size, 1) or slice_bytes == SLICE_BYTES
    whole, cut = results
    for name, rows in whole.items():
        other = cut[name]
        assert rows is not None and other is not None
        assert (rows.first, rows.count, rows.width) == (2 * int(name), 11, other.width)
        assert rows.token_ids == other.token_ids and rows.ranks == other.ranks
        for column in ("logprobs", "chosen"):
            values, others = (torch.frombuffer(bytearray(getattr(one, column) or bytes(4)), dtype=torch.float32)
                              for one in (rows, other))  # fmt: skip
            torch.testing.assert_close(values, others, atol=1e-5, rtol=0)


def test_values_are_those_of_the_definition(tokens: torch.Tensor) -> None:
    hidden = torch.randn(80, HIDDEN, generator=torch.Generator().manual_seed(2))
    scorer = PromptScorer(VOCAB_SIZE, lambda rows: rows @ HEAD, tokens, 4 * VOCAB_SIZE * 7)
    found = scored(scorer, hidden, wants(scorer))
    logits = hidden @ HEAD
    for row, (name, rows) in enumerate(sorted(found.items())):
        assert rows is not None and name == str(row)
        here = logits[3 + 11 * row : 14 + 11 * row]
        values = here if row == 4 else here.log_softmax(-1)
        ids = torch.frombuffer(bytearray(rows.token_ids or bytes(4)), dtype=torch.int32)
        if rows.width:
            ids = ids.view(11, rows.width).long()
            assert ids[:, 0].tolist() == tokens[row, rows.first + 1 : rows.end + 1].tolist()
            told = torch.frombuffer(bytearray(rows.logprobs), dtype=torch.float32).view(11, rows.width)
            torch.testing.assert_close(told, values.gather(1, ids), atol=1e-5, rtol=0)
        chosen = {
            2: values[:, [7, 3]],  # positions 4 to 15, all from its start on
            3: torch.stack([values[i, [p - 9, p - 8]] for i, p in enumerate(range(6, 17)) if p >= 9]),
            4: values[:, [1]],
        }.get(row)
        if chosen is None:
            assert not rows.chosen
        else:
            told = torch.frombuffer(bytearray(rows.chosen), dtype=torch.float32).view(chosen.shape)
            torch.testing.assert_close(told, chosen, atol=1e-5, rtol=0)


def test_a_large_vocabulary_is_looked_at_in_small_slices(tokens: torch.Tensor) -> None:
    sizes: list[int] = []

    def logits(rows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return torch.zeros(len(rows), 8_000_000)

    scorer = PromptScorer(8_000_000, logits, tokens)
    scorer.add_row(0, SamplingParams(prompt_logprobs=0), 40)
    scored(scorer, torch.zeros(40, HIDDEN), [Segment("r", 0, 0, 0, 4)])
    assert sizes == [2, 2] and SLICE_BYTES >= 2 * 4 * 8_000_000


def test_values_that_are_not_finite_are_not_told(tokens: torch.Tensor) -> None:
    hidden = torch.zeros(20, HIDDEN)
    hidden[12] = torch.nan
    scorer = PromptScorer(VOCAB_SIZE, lambda rows: rows @ HEAD, tokens)
    for row in range(2):
        scorer.add_row(row, SamplingParams(prompt_logprobs=1), 35)
    found = scored(scorer, hidden, [Segment("good", 0, 0, 0, 10), Segment("bad", 1, 10, 0, 10)])
    assert found["good"] is not None and found["bad"] is None
    scorer.remove_row(0)
    with pytest.raises(KeyError):
        scorer.score(hidden, [Segment("good", 0, 0, 0, 10)])
