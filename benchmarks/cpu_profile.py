#!/usr/bin/env python
"""Where a step's time goes on a CPU, kernel by kernel: steps are recorded on tapes, which are then played with a clock.

    benchmarks/cpu_profile.py [--model PATH | --shape smollm2-135m] [--dtype bfloat16] [--steps 1x1,64x64,1024x1]
                              [--context 256] [--runs 20] [--json FILE]

A step of TxR has T tokens in R rows; with as many rows as tokens it is one of decoding, at `--context` tokens a row.
The clock is there while requests run, since a tape that is played after them would read a cache that is nobody's. A
step is the best of --runs or some more. Sampling and what Python does between steps are not on a tape: `octavo bench`
has the whole.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from octavo.cli.bench.workloads import SHAPES
from octavo.config.options import Options
from octavo.core import buckets
from octavo.core.params import SamplingParams
from octavo.engine.configure import configure
from octavo.engine.frontend import start_frontend
from octavo.llm import LLM
from octavo.ops.cpu.tape import Tape
from octavo.runner import model_runner, tapes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--shape", default="smollm2-135m", choices=sorted(SHAPES))
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--steps", default="1x1,64x64,1024x1")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    # so that prompts are recorded whole too
    model_runner.LEAST_TOKENS_A_ROW = 1 << 30
    buckets.ExactSizes.__init__.__defaults__ = (1 << 30,)  # type: ignore[attr-defined]
    common: dict[str, Any] = {"dtype": args.dtype, "enable_prefix_caching": False, "kv_cache_memory_bytes": 4 << 30}
    options = Options(model=args.model, **common) if args.model else Options(load_format="dummy", **common)
    frontend = start_frontend(configure(options, None if args.model else SHAPES[args.shape]))
    llm = LLM.from_frontend(frontend)
    report = {}
    for step in args.steps.split(","):
        num_tokens, num_rows = (int(part) for part in step.split("x"))
        report[step] = _measure(llm, num_tokens, num_rows, args.context, args.runs)
        _print(step, report[step])
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))
    frontend.client.shutdown()


def _measure(llm: LLM, num_tokens: int, num_rows: int, context: int, runs: int) -> dict[str, Any]:
    length = context if num_tokens == num_rows else num_tokens // num_rows
    output = 24 if num_tokens == num_rows else 1
    params = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)

    def draw(seed: int) -> list[list[int]]:
        return [[(7 * i + j + seed) % 1000 for j in range(length)] for i in range(num_rows)]

    for seed in range(3):  # met, recorded, played
        llm.generate(draw(seed), params, use_tqdm=False)
    graphs = next(one for one in gc.get_objects() if type(one) is tapes.TapedGraphs)
    recorded = {key[0]: one.tape for key, one in graphs._recorded.items()}
    if (num_tokens, num_rows) not in recorded:
        raise SystemExit(f"no step of {num_tokens} tokens in {num_rows} rows was recorded: {sorted(recorded)}")
    tape = recorded[num_tokens, num_rows]
    timed: list[dict[str, tuple[int, float]]] = []
    played = Tape.run

    def run(self: Tape) -> None:
        if self is tape:
            timed.append(self.run_timed())
        else:
            played(self)

    Tape.run = run  # type: ignore[method-assign]
    while len(timed) < runs:
        llm.generate(draw(len(timed) + 3), params, use_tqdm=False)
    Tape.run = played  # type: ignore[method-assign]
    shares = min(timed, key=_seconds)
    return {"ms": _seconds(shares) * 1e3, "kernels": {n: {"calls": c, "ms": s * 1e3} for n, (c, s) in shares.items()}}


def _seconds(shares: dict[str, tuple[int, float]]) -> float:
    return sum(seconds for _, seconds in shares.values())


def _print(step: str, figures: dict[str, Any]) -> None:
    print(f"{step}: {figures['ms']:.2f} ms")
    for name, one in sorted(figures["kernels"].items(), key=lambda item: -item[1]["ms"]):
        print(f"  {name:16} {one['calls']:4} calls {one['ms']:9.3f} ms {one['ms'] / one['calls'] * 1e3:9.1f} us each")


if __name__ == "__main__":
    main()
