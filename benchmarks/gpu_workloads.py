"""The six GPU workloads, best of some repetitions with the spread, beside the floor of the machine; JSON out.

    python benchmarks/gpu_workloads.py --shape llama-8b --output results.json
    python benchmarks/gpu_workloads.py --shape llama-8b --workloads one-long
    python benchmarks/gpu_workloads.py --shape qwen3-0.6b --workloads single,mixed --profile profile.txt
    python benchmarks/gpu_workloads.py --shape mamba2-1.3b --workloads single,mixed,prefill

Random weights, prompts as token ids, no detokenising, end-of-sequence ignored. One engine serves all workloads. The
floor is the sum over the steps of an ideal schedule of max(bytes / bandwidth, operations / rate), with the rates given
on the command line (those measured on an H200 by default).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

from octavo.cli.bench.measure import Throughput, graph_totals  # noqa: E402
from octavo.cli.bench.workloads import SHAPES, Workload, make_workload  # noqa: E402
from octavo.engine.frontend import open_frontend  # noqa: E402

NAMES = ("single", "mixed", "chat", "prefill", "prefix", "longctx")


@dataclass(frozen=True)
class Rates:
    bytes_per_second: float
    operations_per_second: float  # matrix products
    attention_per_second: float  # operations of prefill attention


@dataclass(frozen=True)
class Costs:
    """What a layer costs."""

    weights: int
    kv_bytes: int = 0  # of a token of context
    state_bytes: int = 0  # of a row: read and written in every step that the row is in
    attention: float = 0.0  # operations of a query token for each token that it sees
    recurrence: float = 0.0  # operations of a token: its part in the state, and the state's in the output


def costs_of(shape: dict[str, Any], state_dtype: str) -> Costs:
    hidden = shape["hidden_size"]
    if "state_size" in shape:
        inner = shape["num_heads"] * shape["head_dim"]
        convolved = inner + 2 * shape["n_groups"] * shape["state_size"]
        values = inner * shape["state_size"]
        return Costs(
            weights=hidden * (2 * inner + convolved + shape["num_heads"]) + convolved * shape["conv_kernel"],
            state_bytes=(2 if state_dtype == "bfloat16" else 4) * values + 2 * convolved * (shape["conv_kernel"] - 1),
            recurrence=4.0 * values,
        )
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    head = shape.get("head_dim", hidden // heads)
    return Costs(
        weights=hidden * head * (2 * heads + 2 * kv_heads) + 3 * hidden * shape["intermediate_size"],
        kv_bytes=2 * 2 * kv_heads * head,  # bf16
        attention=4.0 * heads * head,
    )


def floor_seconds(
    shape: dict[str, Any], workload: Workload, rates: Rates, state_dtype: str = "auto", budget: int = 8192
) -> float:
    """All requests at once; each step gives every decoding row its token and the rest of the budget to prompts."""
    layers, cost = shape["num_hidden_layers"], costs_of(shape, state_dtype)
    head_weights = shape["hidden_size"] * shape["vocab_size"]
    kv_bytes = layers * cost.kv_bytes
    waiting = [prompt - (workload.shared if i else 0) for i, (prompt, _) in enumerate(workload.lengths)]
    left = [output for _, output in workload.lengths]
    context = [prompt - need for (prompt, _), need in zip(workload.lengths, waiting, strict=True)]
    seconds = 0.0
    while any(left):
        tokens, sampled, rows, read, attended = 0, 0, 0, 0.0, 0.0
        for i in range(len(left)):
            if not left[i]:
                continue
            if not waiting[i]:
                context[i] += 1
                tokens, sampled, read = tokens + 1, sampled + 1, read + context[i] * kv_bytes
                left[i] -= 1
                rows += 1
        for i in range(len(left)):
            chunk = min(waiting[i], budget - tokens)
            if left[i] and chunk > 0:
                attended += layers * cost.attention * chunk * (context[i] + chunk / 2)
                waiting[i] -= chunk
                context[i] += chunk
                tokens += chunk
                rows += 1
                if not waiting[i]:
                    sampled, left[i] = sampled + 1, left[i] - 1
        if workload.shared:  # read once for all rows
            read = max(0.0, read - max(0, sampled - 1) * workload.shared * kv_bytes)
        read += 2.0 * rows * layers * cost.state_bytes
        weights = 2.0 * (layers * cost.weights + head_weights)
        operations = 2.0 * (layers * cost.weights * tokens + head_weights * sampled)
        operations += layers * cost.recurrence * tokens
        busy = operations / rates.operations_per_second + attended / rates.attention_per_second
        seconds += max((weights + read) / rates.bytes_per_second, busy)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="qwen3-0.6b")
    parser.add_argument("--workloads", default=",".join(NAMES))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--profile", type=Path, help="Writes where the time of one more repetition of each goes.")
    parser.add_argument("--max-model-len", type=int, help="Default: 17,408, or what the longest request needs.")
    parser.add_argument("--options", default="{}", help="JSON: more engine options.")
    parser.add_argument("--bandwidth", type=float, default=4.3e12, help="bytes a second")
    parser.add_argument("--matrix-rate", type=float, default=790e12, help="operations a second")
    parser.add_argument("--attention-rate", type=float, default=609e12)
    args = parser.parse_args()
    rates = Rates(args.bandwidth, args.matrix_rate, args.attention_rate)
    shape = SHAPES[args.shape]
    imported = time.perf_counter()
    names = args.workloads.split(",")
    longest = max(make_workload(name).longest for name in names)
    max_model_len = args.max_model_len or max(17_408, -(-longest // 1024) * 1024)
    options = {"load_format": "dummy", "max_model_len": max_model_len, **json.loads(args.options)}
    frontend = open_frontend(shape, options)
    loaded = time.perf_counter()
    worker = frontend.client.core.executor.worker  # type: ignore[attr-defined]
    report: dict[str, Any] = {"shape": args.shape, "device": device_name(), "workloads": {}}
    try:
        first = Throughput(frontend, make_workload("single"))
        first.warm_up()
        report["start_seconds"] = {
            "import": round(imported - STARTED, 2),
            "load": round(loaded - imported, 2),
            "first tokens": round(time.perf_counter() - loaded, 2),
            "in all": round(time.perf_counter() - STARTED, 2),
            "phases": {name: round(s, 2) for name, s in worker.phases.seconds.items()},
        }
        tell(f"{report['device']}: start {report['start_seconds']}")
        settle()
        for name in names:
            run = Throughput(frontend, make_workload(name))
            for repetition in range(args.repetitions):
                run.repeat(repetition)
            floor = floor_seconds(shape, run.workload, rates, options.get("mamba_ssm_cache_dtype", "auto"))
            result = {
                **run.report(),
                "floor_seconds": round(floor, 3),
                "times_floor": round(min(run.seconds) / floor, 2),
            }
            report["workloads"][name] = result
            best = min(run.seconds)
            per_token = best / run.workload.num_output_tokens * 1e3
            tell(
                f"{args.shape} {name}: {best:.3f} s ({', '.join(f'{s:.3f}' for s in run.seconds)}), "
                f"{run.workload.num_output_tokens / best:,.0f} out tok/s, {run.workload.num_prompt_tokens / best:,.0f} "
                f"in tok/s, {per_token:.3f} ms/token; floor {floor:.3f} s"
            )
            if args.output is not None:
                args.output.write_text(json.dumps(report, indent=2) + "\n")
            if args.profile is not None:
                profile(run, args.profile, args.repetitions)
        report["graphs"] = graph_totals(frontend)
        tell(f"graphs: {report['graphs']}")
        if args.output is not None:
            args.output.write_text(json.dumps(report, indent=2) + "\n")
    finally:
        frontend.client.shutdown()
    print(json.dumps(report, indent=2), flush=True)
    if args.profile is not None:
        os._exit(0)  # the profiler's library still has buffers, which it may free twice in an orderly end


def settle() -> None:
    """Until nothing is compiled beside requests any more: at a first start on a machine that takes processors, and the
    interpreter, from the first repetitions."""
    from octavo.ops.ahead import THREADS  # which imports torch: not before the start is timed

    for thread in threading.enumerate():
        if thread.name.startswith(THREADS):
            thread.join()


def profile(run: Throughput, path: Path, repetition: int) -> None:
    """Kernels by time, and how much of the run the device was busy."""
    import torch
    from torch.profiler import ProfilerActivity

    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        started = time.perf_counter()
        run.repeat(repetition)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    averages = found.key_averages()
    busy = sum(event.self_device_time_total for event in averages) / 1e6
    with path.open("a") as file:
        file.write(f"{run.workload.name}: {seconds:.3f} s under the profiler, device busy {busy:.3f} s\n")
        file.write(averages.table(sort_by="self_device_time_total", row_limit=25, max_name_column_width=70) + "\n")
        file.write(averages.table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=70) + "\n")


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
