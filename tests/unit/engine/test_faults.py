"""The hook that fault tests use fails exactly where it is told to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from octavo.engine.faults import FaultyModel, read_faults
from octavo.errors import ConfigurationError


def forward(text: str, rows: list[list[int]]) -> torch.Tensor:
    model: Any = SimpleNamespace(forward=lambda ids, step: torch.ones(len(ids), 2), vocab_size=9)
    faulty = FaultyModel(model, read_faults(text))
    assert faulty.vocab_size == 9  # the rest is the model's
    step: Any = SimpleNamespace(query_lens=[len(row) for row in rows])
    return faulty.forward(torch.tensor([token_id for row in rows for token_id in row]), step)


def test_faults_strike_at_prompts_alone() -> None:
    with pytest.raises(RuntimeError, match="token 7"):
        forward("raise=7,nan=8", [[1], [2, 7]])
    assert torch.isfinite(forward("raise=7,nan=8", [[7], [8], [1, 2]])).all()
    hidden = forward("nan=8", [[8], [1, 8, 2]])
    assert torch.isnan(hidden).any(1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("text", ["raise", "raise=x", "delay=soon", "explode=1", "hang="])
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="OCTAVO_TEST_FAULTS must be"):
        read_faults(text)
