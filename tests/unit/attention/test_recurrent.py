from __future__ import annotations

import pytest
import torch

from octavo.attention.backend import GroupStep, StepContext
from octavo.attention.recurrent import OPS, RecurrentBackend
from octavo.ops import dispatch
from octavo.ops.state_rows import RowBounds


def step_of(query_lens: list[int], seq_lens: list[int], max_seq_lens: list[int]) -> StepContext:
    table = torch.tensor([[7 - row, 0] for row in range(len(query_lens))], dtype=torch.int32)
    return StepContext(
        positions=torch.zeros(sum(query_lens), dtype=torch.int64),
        query_start=torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        query_lens=query_lens,
        max_seq_lens=max_seq_lens,
        groups=[GroupStep(table, torch.zeros(0, dtype=torch.int64))],
        rows=torch.arange(len(query_lens)),
    )


def test_the_specification_cannot_be_captured() -> None:
    backend = RecurrentBackend()
    assert not backend.is_capturable
    step = step_of([1, 2], [5, 9], [6, 9])
    assert backend.graph_key(step) is None
    rows = backend.plan(step, 0)
    assert rows.blocks.tolist() == [7, 6] and rows.fresh is None
    fresh = backend.plan(step_of([1, 2], [5, 2], [6, 2]), 0).fresh
    assert fresh is not None and fresh.tolist() == [False, True]


def test_kernels_that_read_tensors_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a row starts from is then read on the device, though no row of the captured step starts anew."""
    for op in OPS[1:]:
        monkeypatch.setitem(dispatch._chosen, op, "triton")
    backend = RecurrentBackend()
    assert not backend.is_capturable, "one op of torch is enough"
    monkeypatch.setitem(dispatch._chosen, OPS[0], "triton")
    assert backend.is_capturable
    step = step_of([1, 1, 0], [5, 9, 0], [6, 9, 0])
    rows = backend.plan(step, 0)
    assert rows.fresh is not None and rows.fresh[:2].tolist() == [False, False]
    assert backend.graph_key(step) == rows.bounds == RowBounds(True, 0)
    assert backend.graph_key(step_of([1, 6, 0], [5, 9, 0], [6, 9, 0])) == RowBounds(False, 3)
