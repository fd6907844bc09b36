#!/usr/bin/env python
"""Linear layers on a CPU: octavo's kernels by format and number of rows, with floors and torch's oneDNN beside.

    benchmarks/cpu_linear.py [--model smollm2|qwen3] [--formats Q4_1,BF16] [--rows 1,8,64,512] [--isa avx512]
                             [--threads 2] [--pool own|openmp] [--json FILE]

A line is the best of several runs over all layers' worth of distinct weights (so that a cache holds them only where
the model's would be held), in GB/s of weights and TFLOP/s. The floor is the longer of reading the weights at
--bandwidth and multiplying at --peak. Other programs on the machine only ever slow a run down, so the best counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from octavo import _cpu
from octavo.ops.cpu.linear import linear_packed
from octavo.ops.cpu.packing import pack_blocks, pack_numbers
from octavo.ops.packed import BLOCK_LAYOUTS, PackedPart, PackedWeight, can_pack
from octavo.platforms.cpu import read_processor, usable_cpus

# name -> (outputs, inputs), copies in the model
SHAPES = {
    "smollm2": {
        "qkv": ((960, 576), 30),
        "out": ((576, 576), 30),
        "gate_up": ((3072, 576), 30),
        "down": ((576, 1536), 30),
        "head": ((49152, 576), 1),
    },
    "qwen3": {
        "qkv": ((4096, 1024), 28),
        "out": ((1024, 2048), 28),
        "gate_up": ((6144, 1024), 28),
        "down": ((1024, 3072), 28),
        "head": ((151936, 1024), 1),
    },
}
GGML_ROW_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}


def random_weight(format: str, outputs: int, inputs: int) -> PackedWeight:
    weight = PackedWeight.empty(inputs, (PackedPart(format, outputs),), torch.device("cpu"))
    if format in BLOCK_LAYOUTS:
        block = 256 if BLOCK_LAYOUTS[format].head_bytes else 32
        size = inputs // block * GGML_ROW_BYTES[format]
        pack_blocks(np.full((outputs, size), 0x11, dtype=np.uint8), weight, 0)  # 0x1111 is a small f16
    else:
        pack_numbers(torch.randn(outputs, inputs).to(torch.bfloat16), weight, 0)
    return weight


def best(runs: list[Callable[[], object]], seconds: float, clock: Callable[[], float]) -> float:
    """Mean over `runs` of the least time of each; they take turns, so that none finds its weight in a near cache."""
    least, until = [float("inf")] * len(runs), time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or time.perf_counter() < until:
        for place, run in enumerate(runs):
            started = clock()
            run()
            least[place] = min(least[place], clock() - started)
        rounds += 1
    return sum(least) / len(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SHAPES), default="smollm2")
    parser.add_argument("--layers", default="qkv,out,gate_up,down,head")
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
        kinds = [*args.formats.split(","), *(["torch"] if args.torch else [])]
        for format in kinds:
            if format != "torch" and not can_pack(format, inputs):
                continue
            makers = []
            for _ in range(copies):
                if format == "torch":
                    plain = torch.randn(outputs, inputs).to(torch.bfloat16)
                    makers.append((torch.ops.mkldnn._linear_pointwise, plain.to_mkldnn()))
                    num_bytes = plain.nbytes
                else:
                    packed = random_weight(format, outputs, inputs)
                    makers.append((linear_packed, packed))
                    num_bytes = packed.data.nbytes
            for rows in map(int, args.rows.split(",")):
                x = torch.randn(rows, inputs).to(torch.bfloat16)
                runs: list[Callable[[], object]] = []
                with torch.inference_mode():
                    for function, weight in makers:
                        if format == "torch":
                            runs.append(lambda f=function, w=weight, x=x: f(x, w, None, "none", [], ""))
                        else:
                            runs.append(lambda f=function, w=weight, x=x: f(x, w))
                    took = best(runs, args.seconds, time.thread_time if args.processor_time else time.perf_counter)
                flops = 2 * rows * outputs * inputs
                floor = max(num_bytes / args.bandwidth / 1e9, flops / args.peak / 1e12)
                print(
                    f"{name:<8} {format:<6} {rows:>5} {took * 1e6:>9.1f} {num_bytes / took / 1e9:>6.1f} "
                    f"{flops / took / 1e12:>8.2f} {floor * 1e6:>9.1f} {floor / took:>8.0%}",
                    flush=True,
                )
                lines.append(
                    {"layer": name, "format": format, "rows": rows, "seconds": took, "bytes": num_bytes, "floor": floor}
                )
    if args.json:
        args.json.write_text(json.dumps({"isa": _cpu.isa(), "threads": threads, "lines": lines}, indent=1))


if __name__ == "__main__":
    main()
