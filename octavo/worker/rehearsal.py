"""Steps that are rehearsed at a first start, so that their kernels compile at once and beside the weights."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import octavo
from octavo.config.engine_config import EngineConfig, SchedulerConfig
from octavo.core.params import SamplingParams
from octavo.core.step import NewRow, StepPlan
from octavo.ops.ahead import Rehearsal, kernel_directory
from octavo.runner.model_runner import ModelRunner

logger = logging.getLogger(__name__)

_GREEDY, _RANDOM = SamplingParams(temperature=0.0), SamplingParams(temperature=0.6)


@dataclass(frozen=True)
class Shape:
    """A step of `rows` rows with `tokens` new tokens each."""

    rows: int
    tokens: int
    params: SamplingParams


def shapes(scheduler: SchedulerConfig) -> tuple[list[Shape], list[Shape]]:
    """Those that the first requests will meet, and others: one of each size at which kernels take another form. These
    are small, because tensors stay until their kernels are compiled, which may be when memory is dealt out."""
    most_rows, most_tokens = scheduler.max_num_seqs, scheduler.max_num_batched_tokens
    first = [
        Shape(most_rows, max(1, most_tokens // most_rows), _RANDOM),  # the largest, which is measured
        Shape(1, min(16, most_tokens), _GREEDY),
        Shape(1, 1, _GREEDY),
        Shape(1, 1, _RANDOM),
        Shape(min(64, most_rows), 1, _RANDOM),
    ]
    sizes = (2, 4, 8, 16, 32, 128, 256, 512, most_rows)
    return first, [Shape(rows, 1, _RANDOM) for rows in sizes if rows <= most_rows]


def rehearse(
    config: EngineConfig, device: torch.device, make_runner: Callable[[], ModelRunner], what: str
) -> Rehearsal | None:
    """Compiles on threads whatever steps of these shapes launch; `wait` for it before the first step. None where
    nothing needs to be compiled, or all was in an earlier run: `what` names everything that the kernels depend on
    beside their own code and the shapes."""
    directory = kernel_directory(device)
    if directory is None:
        return None
    first, more = shapes(config.scheduler)
    done = directory / f"octavo-rehearsed-{_fingerprint(what, [*first, *more])}"
    if done.exists():
        return None
    runner = make_runner()
    with Rehearsal(device) as rehearsal:
        runner.model.prepare()
        for plan in plans(runner, first, config.scheduler.max_model_len):
            runner.finish(runner.forward(plan))
        runner.reset()
        rehearsal.mark()
        for plan in plans(runner, more, config.scheduler.max_model_len):
            runner.finish(runner.forward(plan))
        runner.reset()
        rehearsal.when_done(lambda: _write(done))
    return rehearsal


def plans(runner: ModelRunner, shapes: Sequence[Shape], max_model_len: int) -> Iterator[StepPlan]:
    """A plan for each shape, whose rows replace those before. All their blocks are the null block."""
    widths = [table.shape[1] for table in runner.table.block_tables]
    last: list[str] = []
    for number, shape in enumerate(shapes):
        tokens = min(shape.tokens, max_model_len - 1)
        length = tokens + (1 if shape.tokens == 1 else 0)  # a row that decodes has a token in the cache already
        blocks = tuple([0] * min(width, -(-length // 16)) for width in widths)
        names = [f"rehearsal {number} {row}" for row in range(shape.rows)]
        rows = [
            NewRow(name, [0] * length, length, length - tokens, blocks, shape.params, frozenset(), 0) for name in names
        ]
        yield StepPlan(number, dict.fromkeys(names, tokens), new_rows=rows, removed=last, sampled=names)
        last = names


def _fingerprint(what: str, shapes: Sequence[Shape]) -> str:
    """Of octavo's kernels too, whose code is read."""
    found = hashlib.sha256(repr((what, shapes, torch.__version__, octavo.__version__)).encode())
    root = Path(octavo.__file__).parent
    for folder in ("ops/triton", "attention"):
        for path in sorted((root / folder).glob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()[:32]


def _write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
