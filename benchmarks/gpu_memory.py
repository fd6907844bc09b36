"""What becomes of a GPU's memory: the options that divide it, and a step for which too little is left. JSON out.

    python benchmarks/gpu_memory.py --shape qwen3-0.6b

`options`: for each choice, what the cache got and why, and what the device then has in use. `short`: requests decode in
float32; then another program's share is played by one tensor that leaves almost nothing, a long prompt comes, and some
steps later the tensor goes. All requests must end with the tokens they have without it.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
from pathlib import Path
from typing import Any

GIB = 1 << 30
CHOICES: list[dict[str, Any]] = [
    {},
    {"gpu_memory_utilization": 0.5},
    {"gpu_memory_utilization": 0.2},
    {"kv_cache_memory_bytes": 4 * GIB},
    {"kv_cache_memory_bytes": 1 * GIB, "max_model_len": "auto"},
    {"kv_cache_memory_bytes": 1 * GIB},  # too little for the model's own length: refused
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen3-0.6b")
    parser.add_argument("--parts", default="options,short")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    from octavo.telemetry.log import setup_logging

    setup_logging(logging.WARNING)
    report: dict[str, Any] = {}
    if "options" in args.parts:
        report["options"] = [try_options(args.shape, choice) for choice in CHOICES]
    if "short" in args.parts:
        report["short"] = run_short(args.shape)
    text = json.dumps(report, indent=1)
    if args.output is not None:
        args.output.write_text(text + "\n")
    print(text)


def open_core(shape: str, options: dict[str, Any]) -> Any:
    from octavo.cli.bench.workloads import SHAPES
    from octavo.engine.frontend import open_frontend

    client: Any = open_frontend(SHAPES[shape], {"load_format": "dummy", **options}).client
    return client.core


def close_core(core: Any) -> None:
    import torch

    core.shutdown()
    core.executor = core.scheduler = None
    gc.collect()
    torch.cuda.empty_cache()


def try_options(shape: str, options: dict[str, Any]) -> dict[str, Any]:
    import torch

    from octavo.errors import OctavoError

    found: dict[str, Any] = {"options": options}
    try:
        core = open_core(shape, options)
    except OctavoError as error:
        return {**found, "refused": f"{type(error).__name__}: {error}"}
    worker = core.executor.worker
    free, total = torch.cuda.mem_get_info()
    found |= {
        "cache_gib": round(worker.cache.num_bytes / GIB, 2),
        "why": worker.memory.why,
        "in_use_share": round((total - free) / total, 4),
        "longest_request": core.max_total_tokens,
    }
    print(json.dumps(found), file=sys.stderr, flush=True)
    del worker
    close_core(core)
    return found


def run_short(shape: str) -> dict[str, Any]:
    import torch

    options = {
        "dtype": "float32",
        "max_model_len": 16_384,
        "gpu_memory_utilization": 0.4,
        "max_num_batched_tokens": 8192,
    }
    core = open_core(shape, options)
    expected, _, _ = run_requests(core, 0)
    core.reset_prefix_cache()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    held = [torch.empty(free - (96 << 20), dtype=torch.uint8, device="cuda")]
    found, errors, budgets = run_requests(core, 400, held)
    result = {
        "tokens_are_equal": found == expected,
        "errors": errors,
        "smallest_steps": min(budgets),
        "left_free_mib": 96,
    }
    core.reset_prefix_cache()
    again, _, _ = run_requests(core, 0)
    result["and_again_after_it"] = again == expected
    close_core(core)
    return result


def run_requests(core: Any, hold_for: int, held: list[Any] | None = None) -> tuple[Any, Any, list[int]]:
    """Eight requests decode, then a prompt of 12,000 tokens joins; `held` is let go after so many steps."""
    from octavo.core.messages import Submit
    from octavo.core.params import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True, detokenize=False)
    for number in range(8):
        core.add(Submit(f"short {number}", [10 + (number + 3 * i) % 400 for i in range(64)], params, 0.0))
    outputs: dict[str, list[int]] = {}
    errors: dict[str, str] = {}
    budgets: list[int] = []
    steps = 0
    while core.has_work():
        if steps == 12:
            core.add(Submit("long", [10 + (7 * i) % 400 for i in range(12_000)], params, 0.0))
        for delta in core.step().deltas:
            outputs.setdefault(delta.request_id, []).extend(delta.token_ids)
            if delta.error is not None:
                errors[delta.request_id] = delta.error
        steps += 1
        budgets.append(core.scheduler.token_budget)
        if held and steps >= hold_for:
            held.clear()
    if held:
        held.clear()
    return outputs, errors, budgets


if __name__ == "__main__":
    main()
