from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.config.options import make_options
from octavo.engine.configure import configure
from octavo.layers.stack import CausalLM
from octavo.worker import rehearsal
from octavo.worker.worker import Worker
from tests.unit.worker.test_assemble import BAMBA

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}


class Threads:
    """Stands in for what compiles: says what it was asked for."""

    made: list[Threads] = []  # noqa: RUF012

    def __init__(self, device: torch.device) -> None:
        self.calls: list[str] = []
        self.made.append(self)

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append("end")

    def mark(self) -> None:
        self.calls.append("mark")

    def when_done(self, function: Any) -> None:
        self.calls.append("done")
        function()

    def wait(self) -> None:
        self.calls.append("wait")

    def wait_beside(self) -> None:
        self.calls.append("wait beside")


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Threads]:
    monkeypatch.setattr(rehearsal, "kernel_directory", lambda device: tmp_path / "kernels")
    monkeypatch.setattr(rehearsal, "Rehearsal", Threads)
    monkeypatch.setattr(Threads, "made", [])
    return Threads


def worker(model: dict[str, Any], **options: Any) -> Worker:
    values = {
        "load_format": "dummy",
        "dtype": "float32",
        "max_num_seqs": 40,
        "max_num_batched_tokens": 64,
        "threads": 1,
    }
    found = configure(make_options(model=model, **{**values, "num_gpu_blocks_override": 400, **options}))
    return Worker(found.config, found.platform)


@pytest.mark.parametrize("model", [LLAMA, BAMBA], ids=["llama", "bamba"])
def test_a_first_start_rehearses_and_the_next_does_not(
    model: dict[str, Any], threads: type[Threads], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All shapes are steps that the runner takes, whatever the layers keep. Backends are told when it begins."""
    told: list[int] = []
    monkeypatch.setattr(CausalLM, "prepare", lambda self: told.append(len(threads.made)))
    first = worker(model)
    assert told == [0, 1]
    assert [made.calls for made in threads.made] == [["mark", "done", "end", "wait", "wait beside"]]
    assert not first.runner.table.row_of
    worker(model)
    assert len(threads.made) == 1
    assert told == [0, 1, 1]
    worker(model, max_num_seqs=32)  # other sizes, other kernels
    assert len(threads.made) == 2


def test_shapes_stay_within_the_configuration() -> None:
    for rows, tokens in ((1, 1), (3, 7), (1024, 8192)):
        found = configure(
            make_options(model=LLAMA, load_format="dummy", max_num_seqs=rows, max_num_batched_tokens=tokens)
        )
        scheduler = found.config.scheduler
        assert (scheduler.max_num_seqs, scheduler.max_num_batched_tokens) == (rows, tokens)
        first, more = rehearsal.shapes(scheduler)
        for shape in (*first, *more):
            assert 1 <= shape.rows <= rows and 1 <= shape.rows * shape.tokens <= tokens


def test_on_a_cpu_nothing_is_rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "shapes", None)
    worker(LLAMA)
