#!/usr/bin/env python
"""Paged attention on a CPU: octavo's kernels by step, with floors and torch's scaled_dot_product_attention beside.

    benchmarks/cpu_attention.py [--model smollm2|qwen3] [--steps "64x1/350"] [--dtype bfloat16] [--isa avx512]
                                [--threads 2] [--layers 30] [--no-torch] [--json FILE]

A step is rows of query tokens over tokens in all: "64x1/350" is 64 rows that decode with 350 tokens each, "1x1024/1024"
a prompt, "1x512/2048+32x1/350" a mixed step. Each layer has a cache of its own, in the pages that the engine would lay
out, so that another cache of the machine holds it only where the model's would be held. A line is a step's attention in
all layers: the sum of the least time of each, torch's and ours in turn. The floor is the longer of reading keys and
values once at --bandwidth and multiplying at --peak. Other programs on the machine only ever slow a run down, so the
least counts.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from octavo import _cpu
from octavo.attention.backend import AttentionBackend, AttentionCall, GroupStep, StepContext
from octavo.attention.cpu_paged import CpuPaged
from octavo.attention.torch_sdpa import TorchSdpa
from octavo.ops import dispatch
from octavo.platforms.cpu import read_processor, usable_cpus

MODELS = {"smollm2": (9, 3, 64, 30), "qwen3": (16, 8, 128, 28)}  # heads, key heads, head size, layers
STEPS = (
    "1x1/128 1x1/1000 8x1/1000 64x1/350 256x1/350 16x4/500 "
    "1x1024/1024 1x2048/2048 1x512/4096 8x128/128 1x512/1024+32x1/350"
)
BLOCK_SIZE = 16


def parse(step: str) -> list[tuple[int, int]]:
    rows: list[tuple[int, int]] = []
    for part in step.split("+"):
        count, _, rest = part.partition("x")
        tokens, _, length = rest.partition("/")
        rows += [(int(tokens), int(length))] * int(count)
    return rows


def make_step(rows: list[tuple[int, int]]) -> StepContext:
    widths = [-(-length // BLOCK_SIZE) for _, length in rows]
    free = list(range(1, 1 + sum(widths)))
    random.Random(0).shuffle(free)
    table = torch.zeros(len(rows), max(widths), dtype=torch.int32)
    for row, width in enumerate(widths):
        table[row, :width] = torch.tensor([free.pop() for _ in range(width)])
    lens = [tokens for tokens, _ in rows]
    return StepContext(
        positions=torch.zeros(sum(lens), dtype=torch.int64),
        query_start=torch.tensor([0, *lens]).cumsum(0).to(torch.int32),
        seq_lens=torch.tensor([length for _, length in rows], dtype=torch.int32),
        query_lens=lens,
        max_seq_lens=[length for _, length in rows],
        groups=[GroupStep(table, torch.zeros(sum(lens), dtype=torch.int64))],
        rows=torch.arange(len(rows)),
    )


def least(
    backends: list[AttentionBackend],
    q: torch.Tensor,
    caches: list[torch.Tensor],
    step: StepContext,
    call: AttentionCall,
    seconds: float,
    clock: Callable[[], float],
) -> list[float]:
    """Of each backend, the sum over layers of the least time of each. A step's plan is made once and counts too."""
    times = [[float("inf")] * len(caches) for _ in backends]
    plans = [float("inf")] * len(backends)
    until, rounds = time.perf_counter() + seconds, 0
    while rounds < 3 or time.perf_counter() < until:
        for index, backend in enumerate(backends):
            started = clock()
            step.groups[0].plan = backend.plan(step, 0)
            plans[index] = min(plans[index], clock() - started)
            for layer, cache in enumerate(caches):
                started = clock()
                backend.forward(q, cache, step, 0, call)
                times[index][layer] = min(times[index][layer], clock() - started)
        rounds += 1
    return [plan + sum(layers) for plan, layers in zip(plans, times, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="smollm2")
    parser.add_argument("--steps", default=STEPS, help="separated by spaces")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--cache-dtype", help="the model's by default")
    parser.add_argument("--window", type=int)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--isa", default="")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line")
    parser.add_argument("--bandwidth", type=float, default=28.5, help="GB/s that memory gives")
    parser.add_argument("--peak", type=float, default=6.2, help="TFLOP/s of both threads")
    parser.add_argument(
        "--processor-time", action="store_true", help="of one thread: for a machine that others use too"
    )
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cpus = usable_cpus(read_processor())
    threads = args.threads or len(cpus)
    torch.set_num_threads(threads)
    _cpu.start_threads(list(cpus[:threads]))
    _cpu.set_isa(args.isa)
    dispatch.use(("cpu", "torch"))
    num_heads, num_kv_heads, head_dim, num_layers = MODELS[args.model]
    num_layers = args.layers or num_layers
    dtype, cache_dtype = getattr(torch, args.dtype), getattr(torch, args.cache_dtype or args.dtype)
    call = AttentionCall(head_dim**-0.5, num_heads, num_kv_heads, head_dim, args.window)
    heads = f"{num_heads}/{num_kv_heads} heads of {head_dim}"
    print(f"{_cpu.isa()}, {threads} threads, {num_layers} layers of {heads}, {dtype}")
    print(f"{'step':<24} {'ms':>8} {'GB/s':>6} {'TFLOP/s':>8} {'floor ms':>8} {'of floor':>8} {'torch ms':>9} {'x':>6}")
    lines = []
    for name in args.steps.split():
        rows = parse(name)
        step = make_step(rows)
        num_blocks = 1 + int(step.groups[0].block_table.max())
        # as the engine has it: a page holds a block of every layer
        pages = torch.randn(num_blocks, num_layers, 2, BLOCK_SIZE, num_kv_heads, head_dim).to(cache_dtype)
        caches = [pages[:, layer] for layer in range(num_layers)]
        q = torch.randn(sum(step.query_lens), num_heads, head_dim).to(dtype)
        backends: list[AttentionBackend] = [CpuPaged()] if args.no_torch else [CpuPaged(), TorchSdpa()]
        with torch.inference_mode():
            clock = time.thread_time if args.processor_time else time.perf_counter
            took = least(backends, q, caches, step, call, args.seconds, clock)
        seen = sum(min(length, args.window or length) for _, length in rows)
        num_bytes = num_layers * seen * 2 * num_kv_heads * head_dim * cache_dtype.itemsize
        pairs = sum(
            sum(min(at + 1, args.window or at + 1) for at in range(length - tokens, length)) for tokens, length in rows
        )
        flops = 4 * num_layers * num_heads * head_dim * pairs
        floor = max(num_bytes / args.bandwidth / 1e9, flops / args.peak / 1e12)
        theirs = "" if args.no_torch else f"{took[1] * 1e3:>9.2f} {took[1] / took[0]:>6.2f}"
        print(
            f"{name:<24} {took[0] * 1e3:>8.2f} {num_bytes / took[0] / 1e9:>6.1f} {flops / took[0] / 1e12:>8.2f} "
            f"{floor * 1e3:>8.2f} {floor / took[0]:>8.0%} {theirs}",
            flush=True,
        )
        lines.append({"step": name, "seconds": took[0], "torch": took[1:], "bytes": num_bytes, "floor": floor})
    if args.json:
        args.json.write_text(json.dumps({"isa": _cpu.isa(), "threads": threads, "lines": lines}, indent=1))


if __name__ == "__main__":
    main()
