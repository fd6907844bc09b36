"""Published models, greedy, against transformers: six prompts of up to 300 tokens. `scripts/equality` runs them all."""

from __future__ import annotations

import pytest

from tests.real.equality import (
    LENGTHS_IN_CI,
    Case,
    make_engine,
    make_prompts,
    octavo_outputs,
    reference_outputs,
    transformers_model,
)
from tests.real.models import BY_NAME

pytestmark = pytest.mark.real


@pytest.mark.parametrize("name", BY_NAME)
def test_greedy_tokens_equal_those_of_transformers(name: str) -> None:
    path = BY_NAME[name]()
    prompts = make_prompts(path, LENGTHS_IN_CI)
    expected = reference_outputs(transformers_model(path), prompts)
    for case in (Case("alone", {}), Case("together", {"max_num_batched_tokens": 64, "max_num_seqs": 8}, batch=8)):
        outputs, _ = octavo_outputs(make_engine(path, case), prompts, case.batch)
        assert outputs == expected, case.name
