"""Where the seconds of a start go: a first one, with nothing compiled, and a second; JSON out.

    python benchmarks/gpu_start.py --shape llama-8b --output start.json
    python benchmarks/gpu_start.py --shape llama-8b --runs 3          the second one several times

Every start is a process of its own, on one pair of directories for compiled kernels that is empty at first. Times
count from the process's start. After the engine's own phases (imports, model, rehearsal, weights, waiting for kernels,
largest step, cache): one prompt of 16 tokens, one decoding step, and the first that is captured. `kernels` says what
Triton compiled and read from disk, and of these what the main thread had to wait for.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-8b")
    parser.add_argument("--runs", type=int, default=2, help="Starts, the first of which compiles.")
    parser.add_argument("--options", default="{}", help="JSON: more engine options.")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)  # the process that is measured: when it was begun
    args = parser.parse_args()
    if args.one is not None:
        measure(args.shape, json.loads(args.options), args.one)
    folder = tempfile.mkdtemp(prefix="octavo-start-")
    environment = {
        **os.environ,
        "TRITON_CACHE_DIR": f"{folder}/triton",
        "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": f"{folder}/flash",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    report: list[dict[str, Any]] = []
    for number in range(args.runs):
        command = [sys.executable, __file__, "--shape", args.shape, "--options", args.options]
        run = subprocess.run(
            [*command, "--one", repr(time.time())], env=environment, stdout=subprocess.PIPE, text=True, check=False
        )
        if run.returncode:
            sys.exit(f"start {number + 1} failed")
        found = json.loads(run.stdout.splitlines()[-1])
        report.append(found)
        phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in found["phases"].items())
        print(f"start {number + 1}: first tokens after {found['first_tokens']:.2f} s: {phases}", file=sys.stderr)
        if args.output is not None:
            args.output.write_text(json.dumps(report, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(report, indent=1))


def measure(shape: str, options: dict[str, Any], begun: float) -> None:
    """One start, in this process. Does not return."""
    clock = time.perf_counter()
    phases = {"python": time.time() - begun}

    def end(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        phases[name] = now - clock
        clock = now

    from octavo.cli.bench.workloads import SHAPES
    from octavo.core.messages import Submit
    from octavo.core.params import SamplingParams
    from octavo.engine.frontend import open_frontend
    from octavo.telemetry.log import setup_logging

    setup_logging()
    end("front end")
    kernels = Kernels()
    end("triton")
    client: Any = open_frontend(SHAPES[shape], {"load_format": "dummy", "max_model_len": 17_408, **options}).client
    core = client.core
    worker = core.executor.worker
    phases.update(worker.phases.seconds)
    phases["rest of the engine"] = time.perf_counter() - clock - sum(worker.phases.seconds.values())
    clock = time.perf_counter()

    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True, detokenize=False)
    client.add(Submit("first", list(range(10, 26)), params, 0.0))
    seen = 0
    while seen < 8:
        before = seen
        seen += sum(len(delta.token_ids) for delta in client.step().deltas)
        if before == 0 and seen:
            end("first prefill")
            first_tokens = time.time() - begun
        elif before == 1 and seen > 1:
            end("first decode")
        elif before == 2 and seen > 2:
            end("second decode, captured")
    client.abort(["first"])
    while client.has_work():
        client.step()
    for number in range(64):
        client.add(Submit(f"many {number}", list(range(10, 74)), params, 0.0))
    clock = time.perf_counter()
    while sum(len(delta.token_ids) for delta in client.step().deltas) == 0:
        pass
    end("64 prompts of 64")
    clock = time.perf_counter()
    for _ in range(8):
        client.step()
    end("then 8 decodes of 64")
    totals = worker.runner.graph_totals()
    backends = {choice.name for choice in worker.model._backends.values()}
    flash = [getattr(backend, "_flash", None) for backend in worker.model._backends.values()]
    report = {
        "first_tokens": round(first_tokens, 2),
        "phases": {name: round(seconds, 3) for name, seconds in phases.items()},
        "backends": sorted(backends),
        "flash_import_seconds": [round(one.seconds, 2) for one in flash if one is not None],
        "torch_dynamo_is_imported": "torch._dynamo" in sys.modules,
        "kernels": kernels.report(),
        "graphs": {"number": totals.number, "seconds": totals.seconds, "gib": totals.num_bytes / (1 << 30)},
        "device": device_name(),
    }
    client.shutdown()
    print(json.dumps(report), flush=True)
    os._exit(0)


class Kernels:
    """Listens to Triton's compiler, from when it is there."""

    def __init__(self) -> None:
        self._found: list[tuple[str, bool, bool, float]] = []  # name, from disk, on the main thread, seconds
        try:
            import triton
        except ImportError:
            return
        triton.knobs.compilation.listener = self._listen

    def _listen(self, *, src: Any, times: Any, cache_hit: bool, **_: Any) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        self._found.append((src.name, cache_hit, is_main, times.total / 1e6))

    def report(self) -> dict[str, Any]:
        waited = [one for one in self._found if one[2]]
        return {
            "compiled": sum(not one[1] for one in self._found),
            "compiled_seconds": round(sum(one[3] for one in self._found if not one[1]), 2),
            "read": sum(one[1] for one in self._found),
            "waited_for": [f"{name}{' (read)' if hit else ''} {s * 1e3:.0f} ms" for name, hit, _, s in waited],
            "waited_seconds": round(sum(one[3] for one in waited), 2),
        }


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


if __name__ == "__main__":
    main()
