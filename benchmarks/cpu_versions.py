#!/usr/bin/env python
"""Two builds of octavo's compiled kernels in turn, call by call, on a machine that others use as well.

    benchmarks/cpu_versions.py OLD/_cpu.so NEW/_cpu.so [--model smollm2|qwen3] [--rows 64,1024] [--seconds 2]
                                                                   [--format BF16|Q4_1|...] [--isa amx|avx512|avx2]

Where neighbours halve the speed of a core for minutes, two runs one after the other say nothing about a few per cent.
So each core has two processes, one for each build, of which one at a time makes one call, with one thread: the median
of the quotients of neighbouring calls is steady to a hundredth (give a build twice to see). Products of a layer, over
all layers' weights, its norms, and attention over prompts and over decoding rows in bf16.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from octavo.platforms.cpu import read_processor, usable_cpus

MODELS = ("smollm2", "qwen3")
HEADS = {"smollm2": (9, 3, 64), "qwen3": (16, 8, 128)}  # of queries, of keys, their size
ROWS = ((8, 256, 256), (1, 1024, 1024), (64, 1, 350))  # of attention: rows, their new tokens, their lengths
LAYERS = 4  # of attention
Case = tuple[str, list[Callable[[], object]]]


def cases(model: str, format: str, rows: list[int]) -> Iterator[Case]:
    """What each is called, and a call for each layer."""
    import torch
    from cpu_linear import SHAPES, random_weight

    from octavo.ops.cpu.attention import paged_attention
    from octavo.ops.cpu.linear import gated_linear_packed, linear_packed
    from octavo.ops.cpu.norm import add_rms_norm

    def product(x: torch.Tensor, weight: object, is_gated: bool) -> Callable[[], object]:
        return lambda: gated_linear_packed(x, weight, None, "silu") if is_gated else linear_packed(x, weight)

    for name, ((outputs, inputs), layers) in SHAPES[model].items():
        if name in ("gate_up", "head"):
            continue
        weights = [random_weight(format, outputs, inputs, 1 + (name == "gated")) for _ in range(layers)]
        for number in rows:
            x = torch.randn(number, inputs).bfloat16()
            yield f"{name}, {number} rows", [product(x, weight, name == "gated") for weight in weights]

    hidden = SHAPES[model]["out"][0][0]
    ones = torch.ones(hidden).bfloat16()

    def norm(x: torch.Tensor, residual: torch.Tensor) -> Callable[[], object]:
        return lambda: add_rms_norm(x, residual, ones, 1e-5)

    for number in rows:
        pairs = [(torch.randn(number, hidden).bfloat16(), torch.randn(number, hidden).bfloat16()) for _ in range(8)]
        yield f"sum and norm, {number} rows", [norm(*pair) for pair in pairs]

    def attention(q: torch.Tensor, cache: torch.Tensor, *places: torch.Tensor) -> Callable[[], object]:
        return lambda: paged_attention(q, cache, *places, q.shape[2] ** -0.5)

    heads, key_heads, size = HEADS[model]
    for number, tokens, length in ROWS:
        blocks = -(-length // 16)  # in no order, and no row's are another's
        table = torch.randperm(number * blocks, generator=torch.Generator().manual_seed(0)).int().view(number, blocks)
        starts = torch.arange(0, number * tokens + 1, tokens, dtype=torch.int32)
        lengths = torch.full((number,), length, dtype=torch.int32)
        calls = []
        for _ in range(LAYERS):
            q = torch.randn(number * tokens, heads, size).bfloat16()
            cache = torch.randn(number * blocks, 2, 16, key_heads, size).bfloat16()
            calls.append(attention(q, cache, table, starts, lengths))
        yield f"attention, {number} x {tokens} at {length}", calls


def work(pipe: Connection, cpu: int, build: str, isa: str, model: str, format: str, rows: list[int]) -> None:
    """Makes one call for each message until it is None, then goes on to the next case."""
    os.sched_setaffinity(0, {cpu})
    import octavo

    spec = importlib.util.spec_from_file_location("octavo._cpu", build)
    assert spec is not None and spec.loader is not None
    sys.modules["octavo._cpu"] = octavo._cpu = importlib.util.module_from_spec(spec)  # type: ignore[attr-defined]
    spec.loader.exec_module(octavo._cpu)  # type: ignore[attr-defined]
    octavo._cpu.set_isa(isa)  # type: ignore[attr-defined]
    for name, calls in cases(model, format, rows):
        pipe.send(name)
        number = 0
        while pipe.recv() is not None:
            started = time.perf_counter()
            calls[number % len(calls)]()
            pipe.send(time.perf_counter() - started)
            number += 1
    pipe.send(None)


def measure(cpu: int, args: argparse.Namespace) -> str:
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    for build in (args.old, args.new):
        mine, its = context.Pipe()
        context.Process(
            target=work, args=(its, cpu, build, args.isa, args.model, args.format, args.rows), daemon=True
        ).start()
        its.close()
        pipes.append(mine)
    lines = [f"CPU {cpu}: us, best (5%) and median, old and new; median of new / old"]
    while (names := [pipe.recv() for pipe in pipes])[0] is not None:
        times: list[list[float]] = [[], []]
        until = time.perf_counter() + args.seconds
        while time.perf_counter() < until or len(times[0]) < 9:
            for which in (0, 1) if len(times[0]) % 2 else (1, 0):
                pipes[which].send(1)
                times[which].append(pipes[which].recv())
        quotient = statistics.median(new / old for old, new in zip(*times, strict=True))
        shown = "  ".join(f"{sorted(t)[len(t) // 20] * 1e6:8.0f} {statistics.median(t) * 1e6:8.0f}" for t in times)
        lines.append(f"  {names[0]:30} {shown}  {quotient:.3f}")
        for pipe in pipes:
            pipe.send(None)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--format", default="BF16", help="Of the weights.")
    parser.add_argument("--isa", default="", help="Else the best that there is.")
    parser.add_argument("--rows", type=lambda text: [int(part) for part in text.split(",")], default=[64, 1024])
    parser.add_argument("--seconds", type=float, default=2.0, help="For each line.")
    args = parser.parse_args()
    cpus = usable_cpus(read_processor())
    with ThreadPoolExecutor(len(cpus)) as pool:  # all cores at once, as in use
        for report in pool.map(lambda cpu: measure(cpu, args), cpus):
            print(report, flush=True)


if __name__ == "__main__":
    main()
