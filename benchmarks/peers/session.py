"""What compare_cpu.py and an engine's own process say to each other; needs nothing but Python's standard library, since
it runs in each engine's environment.

The process gets a job (JSON, the first argument names the file) and prints a line of JSON for each thing done:

    {"event": "started", "engine": "vllm 0.32.0", "settings": {...}}          after its first token
    {"event": "turn"}                                                         before each repetition
    {"event": "workload", "name": "batch", "seconds": [13.3, 13.2, 13.4]}     after the repetitions of one
    {"event": "failed", "name": "batch", "why": "..."}                        instead of that; the next one follows

After "turn" it waits for a line on stdin, and may be stopped meanwhile: several engines are loaded and take turns
repetition by repetition, so that what the machine's other tenants do meets all of them.

Prompts are token ids drawn by the driver, so that all engines get the same ones. Whatever else an engine prints goes to
stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Prompts = list[list[int]]


@dataclass(frozen=True)
class Work:
    """One workload: `prompts` of each repetition, tokens to generate of each request."""

    name: str
    warm_up: tuple[Prompts, list[int]]
    repetitions: list[Prompts]
    outputs: list[int]
    shared: int = 0  # leading tokens that all prompts of a repetition have in common
    limit_seconds: float = 60.0  # no further repetition is begun after so long


@dataclass(frozen=True)
class Job:
    model: str
    threads: int
    max_model_len: int
    max_num_seqs: int
    works: list[Work] = field(default_factory=list)
    kv_cache_dtype: str | None = None  # for octavo; None is its default


class Engine(Protocol):
    """What an engine's file makes of a job."""

    version: str
    settings: dict[str, Any]

    def prepare(self, work: Work) -> None:
        """Whatever a workload needs that is not part of it, such as a context of its size."""

    def generate(self, prompts: Prompts, outputs: list[int], shared: int) -> list[int]:
        """Greedy, past any end of text. Tokens generated for each prompt."""


def read_job(path: str) -> Job:
    content = json.loads(Path(path).read_text())
    works = [Work(**{**work, "warm_up": (work["warm_up"][0], work["warm_up"][1])}) for work in content.pop("works", [])]
    return Job(works=works, **content)


def run(make: Callable[[Job], Engine], clock: Callable[[], float] = time.perf_counter) -> None:
    """The whole of an engine's process."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def tell(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    def take_turn() -> None:
        tell(event="turn")
        if not sys.stdin.readline():
            raise EOFError("nobody gives turns any more")

    job = read_job(sys.argv[1])
    engine = make(job)
    first = Work("first token", ([], []), [], [1])
    engine.prepare(first)
    engine.generate([[10, 11, 12, 13]], [1], 0)
    tell(event="started", engine=engine.version, settings=engine.settings)
    for work in job.works:
        try:
            tell(event="workload", name=work.name, seconds=measure(engine, work, clock, take_turn))
        except EOFError:
            break
        except Exception as error:  # the next workload may well run
            traceback.print_exc()
            tell(event="failed", name=work.name, why=f"{type(error).__name__}: {error}"[:300])
    answers.close()
    sys.stdout.flush()
    sys.stderr.flush()


def measure(
    engine: Engine,
    work: Work,
    clock: Callable[[], float] = time.perf_counter,
    take_turn: Callable[[], None] = lambda: None,
) -> list[float]:
    """Seconds of each repetition. Raises ValueError where an engine generated another number of tokens."""
    engine.prepare(work)
    prompts, outputs = work.warm_up
    engine.generate(prompts, outputs, 0)
    seconds: list[float] = []
    for prompts in work.repetitions:
        take_turn()
        started = clock()
        counts = engine.generate(prompts, work.outputs, work.shared)
        seconds.append(clock() - started)
        if counts != work.outputs:
            raise ValueError(f"{sum(counts)} tokens instead of {sum(work.outputs)}")
        if sum(seconds) >= work.limit_seconds:
            break
    return seconds
