#!/usr/bin/env python
"""Linear layers on a CPU: octavo's kernels by format and number of rows, with floors and torch's oneDNN beside.

    benchmarks/cpu_linear.py [--model smollm2|qwen3] [--formats Q4_1,BF16] [--rows 1,8,64,512] [--isa avx512]
                             [--threads 2] [--pool own|openmp] [--json FILE]

A line is the best of several runs over all layers' worth of distinct weights (so that a cache holds them only where
the model's would be held), in GB/s of weights and TFLOP/s. The floor is the longer of reading the weights at
--bandwidth and multiplying at --peak. Other programs on the machine only ever slow a run down, so the best counts.
"gated" is gate_up with the activation in the same call; torch's line beside it is the product alone.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from octavo import _cpu
from octavo.ops.cpu.linear import gated_linear_packed, linear_packed
from octavo.ops.cpu.packing import pack_blocks, pack_numbers
from octavo.ops.packed import BLOCK_LAYOUTS, PackedPart, PackedWeight, can_pack
from octavo.platforms.cpu import read_processor, usable_cpus

Run = Callable[[], object]

# name -> (outputs, inputs), copies in the model
SHAPES = {
    "smollm2": {
        "qkv": ((960, 576), 30),
        "out": ((576, 576), 30),
        "gate_up": ((3072, 576), 30),
        "gated": ((3072, 576), 30),
        "down": ((576, 1536), 30),
        "head": ((49152, 576), 1),
    },
    "qwen3": {
        "qkv": ((4096, 1024), 28),
        "out": ((1024, 2048), 28),
        "gate_up": ((6144, 1024), 28),
        "gated": ((6144, 1024), 28),
        "down": ((1024, 3072), 28),
        "head": ((151936, 1024), 1),
    },
}
GGML_ROW_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}


def random_weight(format: str, outputs: int, inputs: int, num_parts: int = 1) -> PackedWeight:
    part = PackedPart(format, outputs // num_parts)
    weight = PackedWeight.empty(inputs, (part,) * num_parts, torch.device("cpu"))
    for index in range(num_parts):
        if format in BLOCK_LAYOUTS:
            block = 256 if BLOCK_LAYOUTS[format].head_bytes else 32
            size = inputs // block * GGML_ROW_BYTES[format]
            blocks = np.full((part.out_features, size), 0x11, dtype=np.uint8)  # 0x1111 is a small f16
            pack_blocks(blocks, weight, index)
        else:
            pack_numbers(torch.randn(part.out_features, inputs).to(torch.bfloat16), weight, index)
    return weight


def best(kinds: list[list[Run]], seconds: float, clock: Callable[[], float]) -> list[float]:
    """For each kind the mean over its runs of the least time of each. Runs take turns, so that none finds its weight in
    a near cache, and so do kinds, so that a machine that others use is the same for all."""
    least = [[float("inf")] * len(runs) for runs in kinds]
    rounds, until = 0, time.perf_counter() + seconds * len(kinds)
    while rounds < 3 or time.perf_counter() < until:
        for kind, runs in enumerate(kinds):
            for place, run in enumerate(runs):
                started = clock()
                run()
                least[kind][place] = min(least[kind][place], clock() - started)
        rounds += 1
    return [sum(times) / len(times) for times in least]


def make_runs(
    kind: str, is_gated: bool, outputs: int, inputs: int, copies: int
) -> tuple[Callable[..., list[Run]], int]:
    """x -> products of it, one a copy; and the bytes of a weight."""
    if kind == "torch":
        plain = [torch.randn(outputs, inputs).to(torch.bfloat16).to_mkldnn() for _ in range(copies)]
        multiply = torch.ops.mkldnn._linear_pointwise
        return lambda x: [lambda w=w: multiply(x, w, None, "none", [], "") for w in plain], outputs * inputs * 2
    packed = [random_weight(kind, outputs, inputs, 2 if is_gated else 1) for _ in range(copies)]
    if is_gated:
        return lambda x: [lambda w=w: gated_linear_packed(x, w, None, "silu") for w in packed], packed[0].data.nbytes
    return lambda x: [lambda w=w: linear_packed(x, w) for w in packed], packed[0].data.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SHAPES), default="smollm2")
    parser.add_argument("--layers", default="qkv,out,gate_up,gated,down,head")
    parser.add_argument("--formats", default="BF16,Q4_0,Q4_1,Q5_0,Q5_1,Q8_0,Q4_K,Q5_K,Q6_K")
    parser.add_argument("--rows", default="1,8,64,512")
    parser.add_argument("--isa", default="")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--pool", choices=["own", "openmp"], default="own")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each line")
    parser.add_argument("--bandwidth", type=float, default=28.5, help="GB/s that memory gives")
    parser.add_argument("--peak", type=float, default=6.2, help="bf16 TFLOP/s")
    parser.add_argument(
        "--processor-time", action="store_true", help="of one thread: for a machine that others use too"
    )
    parser.add_argument("--torch", action="store_true", help="also oneDNN through torch, on a packed bf16 weight")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    # Results lie in memory that was used before, as in a step: fresh pages would be most of what is measured.
    with contextlib.suppress(OSError, AttributeError):
        c = ctypes.CDLL(None)
        c.mallopt(-4, 0)  # M_MMAP_MAX
        c.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
    cpus = usable_cpus(read_processor())
    threads = args.threads or len(cpus)
    torch.set_num_threads(threads)
    _cpu.start_threads(list(cpus[:threads]), args.pool)
    _cpu.set_isa(args.isa)
    print(f"{_cpu.isa()}, {threads} threads ({args.pool})")
    print(
        f"{'layer':<8} {'format':<6} {'rows':>5} {'us':>9} {'GB/s':>6} {'TFLOP/s':>8} {'floor us':>9} {'of floor':>8}"
    )
    lines = []
    for name, ((outputs, inputs), copies) in SHAPES[args.model].items():
        if name not in args.layers.split(","):
            continue
        formats = [format for format in args.formats.split(",") if can_pack(format, inputs)]
        kinds = [*formats, *(["torch"] if args.torch else [])]
        makers = [make_runs(kind, name == "gated", outputs, inputs, copies) for kind in kinds]
        for rows in map(int, args.rows.split(",")):
            x = torch.randn(rows, inputs).to(torch.bfloat16)
            with torch.inference_mode():
                runs = [make(x) for make, _ in makers]
                times = best(runs, args.seconds, time.thread_time if args.processor_time else time.perf_counter)
            for kind, took, (_, num_bytes) in zip(kinds, times, makers, strict=True):
                flops = 2 * rows * outputs * inputs
                floor = max(num_bytes / args.bandwidth / 1e9, flops / args.peak / 1e12)
                print(
                    f"{name:<8} {kind:<6} {rows:>5} {took * 1e6:>9.1f} {num_bytes / took / 1e9:>6.1f} "
                    f"{flops / took / 1e12:>8.2f} {floor * 1e6:>9.1f} {floor / took:>8.0%}",
                    flush=True,
                )
                line = {"layer": name, "format": kind, "rows": rows, "seconds": took, "bytes": num_bytes}
                lines.append({**line, "floor": floor})
    if args.json:
        args.json.write_text(json.dumps({"isa": _cpu.isa(), "threads": threads, "lines": lines}, indent=1))


if __name__ == "__main__":
    main()
