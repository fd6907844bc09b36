"""What a step costs the host: milliseconds of `schedule` and `update`, with the real engine core, scheduler and cache
and a device that computes nothing.

    python -m benchmarks.host_time [--rows 256,1024] [--output-len 256] [--together] [--window 64] [--streams] [--json]

As many requests as rows arrive at once. Within the default budget their prompts spread over many steps, so that in each
step after them a sixteenth of the rows enters a new block; with --together all prompts fit one step, and all rows enter
a block in the same one. "full" are the steps in which every row decodes, "all" also those of prompts and ends.

Repetitions take the same steps, and of each step the quickest counts: what else goes on in the machine stays out, and
so do rounds of Python's garbage collector. A first one that does not count fills the cache, so that blocks are evicted
as in a server that has run for a while. A model's own work between two steps empties the processor's caches: `octavo
bench throughput --shape tiny` reports half as much again.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
from typing import Any

from octavo.cache.groups import CacheGroup, plan_slabs
from octavo.cache.manager import CacheManager
from octavo.cache.retention import KeepAll, KeepWindow
from octavo.cache.spec import PageLayout, PagePart
from octavo.cli.bench.figures import distribution
from octavo.config.engine_config import SchedulerConfig
from octavo.core.messages import StepStats, Submit
from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.core.step import StepPlan, StepResult, TokenMasks
from octavo.engine.engine_core import EngineCore
from octavo.scheduler.caps import FairShare, LongPrefill
from octavo.scheduler.scheduler import Scheduler

BLOCK_SIZE = 16
BUDGET = 2048  # tokens a step
VOCABULARY = 32_000


class AnsweredStep:
    """Every row gets the step's number."""

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan

    def finish(self, masks: TokenMasks | None = None) -> None:
        pass

    def wait(self) -> StepResult:
        return StepResult(self.plan.step_id, [self.plan.step_id % VOCABULARY] * len(self.plan.sampled))


class NoDevice:
    """An executor without a model."""

    def submit(self, plan: StepPlan) -> AnsweredStep:
        return AnsweredStep(plan)

    def reset(self) -> None:
        pass

    def shutdown(self) -> None:
        pass


def make_engine(rows: int, num_tokens: int, budget: int, depth: int, window: int, caching: bool) -> EngineCore:
    """An engine with room for all rows and little else; with a `window`, a second cache group that keeps only so many
    tokens."""
    page = PageLayout(BLOCK_SIZE, (PagePart("kv", (64,), "uint8"),))
    retentions = [KeepAll(), *([KeepWindow(window)] if window else [])]
    groups = [CacheGroup((f"layer{i}",), (page,), kept, BLOCK_SIZE) for i, kept in enumerate(retentions)]
    slabs = plan_slabs(tuple(group.block_bytes for group in groups))
    num_slabs = 2 + rows * len(groups) * (num_tokens // BLOCK_SIZE + 2)
    cache = CacheManager(
        groups, slabs.blocks_per_slab, num_slabs, max_chunk=budget, enable_prefix_caching=caching
    )  # fmt: skip
    config = SchedulerConfig(budget, rows, num_tokens, "fcfs", True, 0, True, 0.0, depth)
    scheduler = Scheduler(config, cache, [LongPrefill(0), FairShare(BLOCK_SIZE)])
    return EngineCore(scheduler, NoDevice(), depth, num_tokens, seed=0)


def run(
    engine: EngineCore, repetition: int, rows: int, input_len: int, output_len: int, streams: bool
) -> list[StepStats]:
    """The steps of one repetition, whose prompts are its own."""
    rng = random.Random(repetition)
    kind = RequestOutputKind.DELTA if streams else RequestOutputKind.FINAL_ONLY
    params = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True, output_kind=kind)
    for row in range(rows):
        prompt = [rng.randrange(VOCABULARY) for _ in range(input_len)]
        engine.add(Submit(f"{repetition}-{row}", prompt, params, 0.0))
    steps = []
    while engine.has_work():
        stats = engine.step().stats
        if stats is not None:
            steps.append(stats)
    return steps


def report(repetitions: list[list[StepStats]]) -> dict[str, Any]:
    """Milliseconds."""
    steps = list(zip(*repetitions, strict=True))
    schedule = [min(s.schedule_seconds for s in step) for step in steps]
    update = [min(s.update_seconds for s in step) for step in steps]
    host = [sum(parts) for parts in zip(schedule, update, strict=True)]
    parts = {"total": host, "schedule": schedule, "update": update}
    return {"steps": len(steps), **{name: distribution(values, 1000) for name, values in parts.items()}}


def measure(rows: int, args: argparse.Namespace) -> dict[str, Any]:
    budget = max(BUDGET, rows * (args.input_len + 1)) if args.together else BUDGET
    num_tokens = args.input_len + args.output_len + 1
    engine = make_engine(rows, num_tokens, budget, args.depth, args.window, not args.no_caching)
    gc.collect()
    gc.freeze()
    repetitions = [
        run(engine, repetition, rows, args.input_len, args.output_len, args.streams)
        for repetition in range(1 + args.repeat)
    ][1:]
    full = [[s for s in steps if s.num_scheduled_tokens == s.num_running == rows] for steps in repetitions]
    return {"rows": rows, "all": report(repetitions), "full": report(full)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="256,1024")
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--depth", type=int, default=1, help="steps in flight")
    parser.add_argument("--window", type=int, default=0, help="tokens that a second cache group keeps; 0: one group")
    parser.add_argument("--together", action="store_true", help="a budget that takes all prompts in one step")
    parser.add_argument("--streams", action="store_true", help="every token is handed out at once")
    parser.add_argument("--no-caching", action="store_true", help="without prefix caching")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    reports = [measure(int(rows), args) for rows in args.rows.split(",")]
    if args.json:
        print(json.dumps(reports, indent=1))
        return
    for figures in reports:
        for steps in ("all", "full"):
            for part in ("total", "schedule", "update"):
                ms = figures[steps][part]
                print(
                    f"{figures['rows']:5} rows  {steps:4}  {part:8}  "
                    f"mean {ms['mean']:.3f}  median {ms['p50']:.3f}  p99 {ms['p99']:.3f} ms"
                )


if __name__ == "__main__":
    main()
