"""Allowed tokens, biases and bad words against plain numpy, with the output known to the device alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.core.params import SamplingParams
from octavo.ops import sampling as ops
from octavo.sampling.sampler import Sampler
from octavo.sampling.token_edits import TokenHistory

VOCAB_SIZE = 70  # three words of bits, the last one not full
NUM_ROWS, WIDTH = 8, 40


class Rows:
    """A sampler over a table of tokens that only "the device" reads."""

    def __init__(self) -> None:
        self.history = TokenHistory(
            torch.full((NUM_ROWS, WIDTH), 9, dtype=torch.int32), torch.zeros(NUM_ROWS, dtype=torch.int64)
        )
        self.sampler = Sampler(NUM_ROWS, VOCAB_SIZE, "cpu", self.history)
        self.num_prompt = [0] * NUM_ROWS

    def add(self, row: int, prompt: list[int], output: list[int], **fields: Any) -> None:
        params = SamplingParams(max_tokens=None, **{"temperature": 0.0, **fields})
        self.sampler.add_row(row, params, row, prompt, output, frozenset())
        self.num_prompt[row] = len(prompt)
        tokens = prompt + output
        self.history.tokens[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        self.history.length[row] = len(tokens)

    def step(self, logits: Tensor, rows: list[int]) -> list[int]:
        """Greedy, and the table learns what was chosen."""
        at = torch.tensor(rows)
        positions = self.history.length[at] - torch.tensor([self.num_prompt[row] for row in rows])
        token_ids = self.sampler.sample(logits.clone(), at, rows, positions).token_ids
        self.history.tokens[at, self.history.length[at]] = token_ids.to(torch.int32)
        self.history.length[at] += 1
        return token_ids.tolist()


def edited(logits: np.ndarray, output: list[int], fields: dict[str, Any]) -> np.ndarray:
    """By the definitions."""
    values = logits.copy()
    if "allowed_token_ids" in fields:
        values[[i for i in range(VOCAB_SIZE) if i not in fields["allowed_token_ids"]]] = -np.inf
    for word in fields.get("bad_words_token_ids", ()):
        if len(word) <= len(output) + 1 and output[len(output) - len(word) + 1 :] == word[:-1]:
            values[word[-1]] = -np.inf
    for token_id, bias in fields.get("logit_bias", {}).items():
        values[token_id] += bias
    return values


def random_fields(rng: random.Random) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if rng.random() < 0.4:
        fields["allowed_token_ids"] = rng.sample(range(VOCAB_SIZE), rng.randrange(5, 40))
    if rng.random() < 0.5:
        fields["logit_bias"] = {i: rng.uniform(-3, 3) for i in rng.sample(range(VOCAB_SIZE), rng.randrange(1, 9))}
    if rng.random() < 0.6:
        few = rng.sample(range(VOCAB_SIZE), 4)
        fields["bad_words_token_ids"] = [rng.choices(few, k=rng.randrange(1, 5)) for _ in range(rng.randrange(1, 12))]
    return fields


@pytest.mark.parametrize("seed", range(25))
def test_every_row_is_edited_by_the_definitions(seed: int) -> None:
    """Rows come, go and are left out of steps; each step's tokens are what numpy says."""
    rng, table = random.Random(seed), Rows()
    torch.manual_seed(seed)
    wanted: dict[int, tuple[list[int], dict[str, Any]]] = {}
    for _ in range(14):
        for row in range(NUM_ROWS):
            if rng.random() < 0.15:
                fields = random_fields(rng)
                favourites = [i for word in fields.get("bad_words_token_ids", ()) for i in word] or [1]
                output = rng.choices(favourites, k=rng.randrange(4))
                table.add(row, rng.choices(favourites, k=rng.randrange(1, 6)), output, **fields)
                wanted[row] = (output, fields)
        rows = [row for row in wanted if rng.random() < 0.8] or list(wanted)[:1]
        if not rows:
            continue
        rng.shuffle(rows)
        logits = torch.randn(len(rows), VOCAB_SIZE)
        for i, row in enumerate(rows):  # most of the weight where words could be completed
            for word in wanted[row][1].get("bad_words_token_ids", ()):
                logits[i, word] += 4
        for row, own, token_id in zip(rows, logits.numpy(), table.step(logits, rows), strict=True):
            output, fields = wanted[row]
            assert token_id == int(edited(own, output, fields).argmax()), (row, output, fields)
            output.append(token_id)


def test_a_bad_word_is_found_in_the_output_alone() -> None:
    """Not with a beginning in the prompt, nor in what an earlier request left in the row."""
    table = Rows()
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 7], logits[0, 3] = 2.0, 1.0
    table.add(0, [1, 5, 6], [5, 6, 1], temperature=0.0)
    table.add(0, [5, 6], [], bad_words_token_ids=[[5, 6, 7]])
    assert table.step(logits, [0]) == [7]
    table.add(0, [5], [6], bad_words_token_ids=[[5, 6, 7]])
    assert table.step(logits, [0]) == [7]
    table.add(0, [5], [5, 6], bad_words_token_ids=[[5, 6, 7]])
    assert table.step(logits, [0]) == [3]
    assert table.step(logits, [0]) == [7], "its beginning is no longer the latest"


def test_bans_hold_against_biases_and_for_every_draw() -> None:
    table = Rows()
    fields: dict[str, Any] = {"logit_bias": {4: 100.0, 5: 50.0}, "bad_words_token_ids": [[4]], "temperature": 1.0}
    table.add(0, [1], [], **fields)
    logits = torch.randn(500, VOCAB_SIZE)
    drawn = table.sampler.sample(logits, torch.zeros(500, dtype=torch.int64), [0] * 500, torch.arange(500)).token_ids
    assert set(drawn.tolist()) == {5}


def test_ids_that_the_model_lacks_say_nothing() -> None:
    table = Rows()
    table.add(
        0,
        [1],
        [],
        logit_bias={VOCAB_SIZE: 9.0},
        bad_words_token_ids=[[VOCAB_SIZE + 3], [1, VOCAB_SIZE]],
        allowed_token_ids=[VOCAB_SIZE, 6],
    )
    assert table.step(torch.zeros(1, VOCAB_SIZE), [0]) == [6]


def test_edits_come_before_penalties_and_after_the_raw_logprobs() -> None:
    """A bias makes a logit positive, so the repetition penalty divides it: -1 + 3 = 2, / 4 = 0.5 < 0.6."""
    table = Rows()
    table.add(0, [4], [], logit_bias={4: 3.0}, repetition_penalty=4.0, logprobs=1)
    logits = torch.full((1, VOCAB_SIZE), -5.0)
    logits[0, 4], logits[0, 5] = -1.0, 0.6
    output = table.sampler.sample(logits.clone(), torch.tensor([0]), [0], torch.tensor([0]))
    assert output.token_ids.tolist() == [5]
    ((_, found),) = output.logprobs[0].rows()
    assert found.logprobs[0] == pytest.approx(float(logits.log_softmax(-1)[0, 5]), abs=1e-5)


def test_nobody_else_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined when the batch changes, not in each step; without a user nothing of it runs."""
    table, called = Rows(), []
    plain_batch, plain_mask = table.sampler._edits.batch, ops.apply_bitmask
    monkeypatch.setattr(table.sampler._edits, "batch", lambda rows: (called.append("joined"), plain_batch(rows))[1])
    monkeypatch.setattr(ops, "apply_bitmask", lambda *args: (called.append("mask"), plain_mask(*args))[1])
    table.add(0, [1], [], allowed_token_ids=[1, 2])
    table.add(1, [1], [])
    for _ in range(3):
        table.step(torch.zeros(2, VOCAB_SIZE), [0, 1])
    assert called == ["joined", "mask", "mask", "mask"]
    called.clear()
    for _ in range(3):
        table.step(torch.zeros(1, VOCAB_SIZE), [1])
    assert called == ["joined"] and table.sampler._split([1]).edits is None
    assert not table.sampler._split([1]).needs_float
