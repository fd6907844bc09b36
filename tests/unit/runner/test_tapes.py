"""Steps of a processor: when they are recorded, played and forgotten."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("octavo._cpu", reason="the CPU kernels are not compiled")

from octavo.ops.cpu.linear import rows_packed
from octavo.ops.cpu.packing import pack_numbers
from octavo.ops.packed import PackedPart, PackedWeight
from octavo.runner import tapes
from octavo.runner.graphs import Computed
from octavo.runner.tapes import TapedGraphs


class Model:
    """Looks rows of a table up, and counts how often Python did it."""

    def __init__(self, spoil: bool = False) -> None:
        self.values = torch.arange(512.0).view(16, 32)
        self.weight = PackedWeight.empty(32, (PackedPart("F32", 16),), torch.device("cpu"))
        pack_numbers(self.values, self.weight, 0)
        self.spoil, self.calls = spoil, 0

    def compute(self, batch: Any) -> Computed:
        self.calls += 1
        hidden = rows_packed(batch.ids, self.weight, torch.float32)
        return (hidden + 0 if self.spoil else hidden), batch.bad


@pytest.fixture(autouse=True)
def inference() -> Any:
    with torch.inference_mode():
        yield


def _runner(model: Model) -> tuple[TapedGraphs, torch.Tensor, Callable[[Any], torch.Tensor]]:
    graphs, ids, bad = TapedGraphs(), torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.bool)

    def run(key: Any) -> torch.Tensor:
        batch: Any = SimpleNamespace(ids=ids[:key] if key else ids, bad=bad)
        return graphs.run(batch, key, model.compute)[0]

    return graphs, ids, run


def test_the_second_step_of_a_size_is_recorded_and_later_ones_are_played() -> None:
    model = Model()
    graphs, ids, run = _runner(model)
    for step, calls in enumerate((1, 2, 2, 2)):
        ids.fill_(step)
        assert torch.equal(run(3), model.values[ids[:3]]) and model.calls == calls
    assert graphs.totals().number == 1 and graphs.totals().num_bytes > 0
    run(2)
    assert model.calls == 3 and graphs.totals().number == 1  # another size


def test_a_step_without_a_key_runs_as_it_is() -> None:
    model = Model()
    graphs, _, run = _runner(model)
    for _ in range(4):
        run(None)
    assert model.calls == 4 and graphs.totals().number == 0


def test_a_model_with_operators_of_torch_is_never_played(caplog: pytest.LogCaptureFixture) -> None:
    model = Model(spoil=True)
    graphs, ids, run = _runner(model)
    with caplog.at_level("INFO", logger="octavo.runner.tapes"):
        for step in range(5):
            ids.fill_(step)
            assert torch.equal(run(3), model.values[ids[:3]])
    assert model.calls == 5 and graphs.totals().number == 0
    assert [record.message for record in caplog.records] == [
        "some steps are not recorded: add of torch takes part in them"
    ]


def test_the_tape_that_was_not_used_for_longest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tapes, "MOST_TAPES", 2)
    model = Model()
    graphs, _, run = _runner(model)
    for key in (1, 1, 2, 2, 1, 3, 3):  # 2 is the one
        run(key)
    assert graphs.totals().number == 2 and model.calls == 6
    run(1)
    assert model.calls == 6
    run(2)
    assert model.calls == 7
    graphs.release()
    assert graphs.totals().number == 0
    run(1)
    assert model.calls == 8
