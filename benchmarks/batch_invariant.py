"""What batch_invariant costs: throughput and single-stream latency with and without it; JSON out.

    python benchmarks/batch_invariant.py                                the demo model
    python benchmarks/batch_invariant.py --shape llama-8b               random weights: decode of 1 to 256 rows; prefill
    python benchmarks/batch_invariant.py --shape llama-8b --products    matrix products beside the library's, by tile

Prompts are random token ids, end-of-sequence is ignored, greedy. One engine a mode, one after the other in a process;
the best of some repetitions counts. On a machine that others use too, compare processor_seconds: what the process was
given.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from octavo.cli.bench.measure import Throughput
from octavo.cli.bench.workloads import SHAPES, Workload, uniform
from octavo.engine.frontend import open_frontend

SMALL: dict[str, Workload] = {"single": uniform(1, 64, 16), "batch": uniform(16, 32, 8), "prefill": uniform(1, 512, 1)}
LARGE: dict[str, Workload] = {
    "decode 1": uniform(1, 128, 128),
    "decode 64": uniform(64, 128, 128),
    "decode 256": uniform(256, 128, 128),
    "decode 8 x 16k": uniform(8, 16_000, 64),
    "prefill": uniform(16, 4096, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), help="Unset: the demo model.")
    parser.add_argument("--workloads", help="By name, with commas between. Unset: all.")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--options", default="{}", help="JSON: more engine options.")
    parser.add_argument("--products", action="store_true", help="Only the matrix products, on a GPU.")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.products:
        report = products(SHAPES[args.shape or "llama-8b"], args.repetitions)
    else:
        workloads = SMALL if args.shape is None else LARGE
        names = workloads if args.workloads is None else args.workloads.split(",")
        report = compare(args.shape, {name: workloads[name] for name in names}, args)
    text = json.dumps(report, indent=2)
    print(text)
    if args.output is not None:
        args.output.write_text(text + "\n")


def compare(shape: str | None, workloads: dict[str, Workload], args: argparse.Namespace) -> dict[str, Any]:
    modes = {"plain": False, "batch_invariant": True}
    report: dict[str, Any] = {"shape": shape or "demo model", "device": device_name(), "workloads": {}}
    for mode, is_invariant in modes.items():
        options = {"batch_invariant": is_invariant, "enable_prefix_caching": False, **json.loads(args.options)}
        options.setdefault("max_model_len", max(128, *(workload.longest for workload in workloads.values())))
        if shape is not None:
            options.setdefault("load_format", "dummy")
        frontend = open_frontend(None if shape is None else SHAPES[shape], options)
        try:
            Throughput(frontend, uniform(1, 16, 4)).warm_up()
            for name, workload in workloads.items():
                run, processor = Throughput(frontend, workload), []
                for repetition in range(args.repetitions):
                    before = time.process_time()
                    run.repeat(repetition)
                    processor.append(time.process_time() - before)
                best, tokens = min(run.seconds), workload.num_output_tokens
                found = {
                    "seconds": [round(seconds, 4) for seconds in run.seconds],
                    "processor_seconds": [round(seconds, 4) for seconds in processor],
                    "output_tokens_per_second": round(tokens / best, 2),
                    "prompt_tokens_per_second": round(workload.num_prompt_tokens / best, 1),
                    "ms_per_output": round(best * 1e3 / workload.lengths[0][1], 3),
                }
                report["workloads"].setdefault(name, {})[mode] = found
                tell(f"{mode} {name}: {found}")
        finally:
            frontend.client.shutdown()
    for name, found in report["workloads"].items():
        for kind in ("seconds", "processor_seconds"):
            plain, invariant = (min(found[mode][kind]) for mode in modes)
            found[f"times_the_{kind}"] = round(invariant / plain, 2)
        tell(f"{name}: {found['times_the_seconds']} times as long")
    return report


def products(shape: dict[str, Any], repetitions: int) -> dict[str, Any]:
    """Microseconds of the products of a layer and of the head, of the library and of tiles; and whether a tile gives
    rows the same bits whatever their number."""
    import torch
    from torch.nn import functional

    from octavo.ops.triton.attention_work import device_limits
    from octavo.ops.triton.linear_tiles import Tile, tile_of, tiled

    hidden, heads, kv_heads = shape["hidden_size"], shape["num_attention_heads"], shape["num_key_value_heads"]
    size, inner = shape.get("head_dim", hidden // heads), shape["intermediate_size"]
    sizes = {
        "qkv": ((heads + 2 * kv_heads) * size, hidden),
        "out": (hidden, heads * size),
        "gate_up": (2 * inner, hidden),
        "down": (hidden, inner),
        "head": (shape["vocab_size"], hidden),
    }
    candidates = [
        Tile(64, 64, 128, 4, 4),
        Tile(64, 64, 64, 4, 5),
        Tile(64, 32, 128, 4, 4),
        Tile(32, 64, 128, 4, 4),
        Tile(64, 128, 64, 4, 4),
        Tile(128, 64, 64, 4, 4),
        Tile(128, 128, 64, 8, 3),
    ]
    report: dict[str, Any] = {"device": device_name(), "products": {}}
    for name, (num_outputs, num_inputs) in sizes.items():
        weight = torch.randn(num_outputs, num_inputs, device="cuda", dtype=torch.bfloat16) / num_inputs**0.5
        chosen = tile_of(num_outputs, torch.bfloat16, device_limits(weight.device))
        all_rows = torch.randn(2048, num_inputs, device="cuda", dtype=torch.bfloat16)
        for tile in dict.fromkeys([chosen, *candidates]):
            whole = tiled(all_rows, weight, None, tile)
            same = all(torch.equal(tiled(all_rows[:n], weight, None, tile), whole[:n]) for n in (1, 3, 64, 65, 300))
            times = {}
            for rows in (1, 64, 256, 2048):
                x = all_rows[:rows]
                times[rows] = round(microseconds(lambda x=x, w=weight, t=tile: tiled(x, w, None, t), repetitions), 1)
            row = {"microseconds": times, "rows_are_invariant": same, "chosen": tile == chosen}
            report["products"].setdefault(name, {})[str(tile)] = row
            tell(f"{name} {tile}: {row}")
        library = {
            rows: round(microseconds(lambda x=all_rows[:rows], w=weight: functional.linear(x, w), repetitions), 1)
            for rows in (1, 64, 256, 2048)
        }
        report["products"][name]["library"] = {"microseconds": library}
        tell(f"{name} library: {library}")
    return report


def microseconds(run: Any, repetitions: int) -> float:
    """Best of `repetitions` means over 20 calls on the device, a large buffer written between so that no weight is
    still in its cache."""
    import torch

    flush = torch.empty(128 << 20, dtype=torch.uint8, device="cuda")
    run()
    best = float("inf")
    for _ in range(repetitions):
        total = 0.0
        for _ in range(20):
            flush.zero_()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
            total += begin.elapsed_time(end)
        best = min(best, total / 20 * 1e3)
    return best


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
