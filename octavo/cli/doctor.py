"""`octavo doctor`: what this machine offers octavo, what is missing, and what that costs."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform as host
import shutil
import sys
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import octavo
from octavo.config.env import cache_directory, thread_limit
from octavo.platforms import cpu
from octavo.platforms.detect import detect
from octavo.platforms.platform import Platform

# Distributions octavo cannot work without, then those it can.
REQUIRED = (
    "torch",
    "numpy",
    "msgspec",
    "pyzmq",
    "tokenizers",
    "jinja2",
    "safetensors",
    "gguf",
    "huggingface-hub",
    "tqdm",
    "psutil",
    "prompt_toolkit",
    "fastapi",
    "pydantic",
    "uvicorn",
    "uvloop",
    "httptools",
    "pyyaml",
    "llguidance",
    "prometheus-client",
    "llguidance",
)
OPTIONAL = {"transformers": "only tests and comparisons with it are impossible"}

_DEMO_MODEL_BYTES = 100 << 20  # the wheel that holds it, with room to unpack is twice that


@dataclass
class Report:
    """Sections of label and value, then what is missing: (what, what it costs)."""

    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: list[tuple[str, str]] = field(default_factory=list)
    is_usable: bool = True  # False: octavo cannot run a model here


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="Print the report as JSON.")


def main(args: argparse.Namespace) -> int:
    report = examine()
    print(json.dumps(asdict(report), indent=2) if args.json else render(report))
    return 0 if report.is_usable else 1


def examine() -> Report:
    report = Report()
    platform = detect()
    report.sections["octavo"] = {
        "version": octavo.__version__,
        "python": f"{host.python_version()} on {host.system()} {host.machine()}",
    }
    _versions(report)
    _device(report, platform)
    _kernels(report, platform)
    _memory(report, platform)
    _cache(report, cache_directory())
    return report


def render(report: Report) -> str:
    lines = []
    width = max(len(label) for rows in report.sections.values() for label in rows)
    for title, rows in report.sections.items():
        lines.append(title)
        lines += [f"  {label:<{width}}  {value}" for label, value in rows.items()]
    lines.append("missing")
    lines += [f"  {what}: {cost}" for what, cost in report.missing] or ["  nothing"]
    return "\n".join(lines)


# ---- sections --------------------------------------------------------------------------------------------------------


def _versions(report: Report) -> None:
    rows: dict[str, Any] = {}
    for name in (*REQUIRED, *OPTIONAL):
        try:
            rows[name] = version(name)
        except PackageNotFoundError:
            rows[name] = "not installed"
            if name in REQUIRED:
                report.is_usable = False
            cost = OPTIONAL.get(name, "octavo cannot run without it; pip install . brings it")
            report.missing.append((f"package {name}", cost))
    report.sections["packages"] = rows


def _device(report: Report, platform: Platform) -> None:
    rows: dict[str, Any] = {
        "platform": platform.name,
        "processor": platform.description,
        "instruction sets": " ".join(platform.instruction_sets) or "none that octavo asks for",
        "computes in": ", ".join(platform.fast_dtypes),
        "emulates": ", ".join(sorted(set(platform.dtypes) - set(platform.fast_dtypes))) or "nothing",
        "cores to use": platform.num_threads,
    }
    report.sections["device"] = rows
    if platform.name != "cpu":
        return
    allowed, quota = cpu.affinity(), cpu.cpu_quota()
    limits = [f"{len(allowed)} logical CPUs allowed"]
    limits += [] if quota is None else [f"a quota of {quota:g} CPUs"]
    limits += [] if thread_limit() is None else [f"OMP_NUM_THREADS {thread_limit()}"]
    named = ", ".join(map(str, platform.cpus))
    rows["cores to use"] = f"{platform.num_threads}: {named} ({', '.join(limits)})"
    if "bfloat16" not in platform.fast_dtypes:
        report.missing.append(
            ("bfloat16 arithmetic (avx512_bf16 or amx_bf16)", "float32 is used: twice the memory and memory traffic")
        )
    if quota is not None and quota < 1:
        report.missing.append((f"a whole CPU (the control group grants {quota:g})", "every step waits for its turn"))


def _kernels(report: Report, platform: Platform) -> None:
    """Which implementation computes each op here, and which others exist."""
    if importlib.util.find_spec("torch") is None:
        report.sections["kernels"] = {"ops": "cannot be listed without torch"}
        return
    dispatch = import_module("octavo.ops.dispatch")
    chosen: dict[str, str] = dispatch.use(platform.op_order)
    rows: dict[str, Any] = {}
    for name in platform.op_order:
        ops = sorted(op for op, implementation in chosen.items() if implementation == name)
        rows[name] = f"{len(ops)} ops: {', '.join(ops)}" if ops else "none"
    if chosen.get("linear_packed") == "cpu":
        rows["instruction set"] = f"{import_module('octavo._cpu').isa()}, of CPU kernels"
    if platform.name == "cpu":
        rows["threads"] = import_module("octavo.ops.threads").describe(platform.num_threads, platform.cpus)
    report.sections["kernels"] = rows
    for name, reason in dispatch.absent().items():
        cost = f"torch's operators compute instead, slower where rows are few ({reason})"
        if name == "cpu":  # which says it all
            cost = reason.removeprefix("ImportError: ")
        report.missing.append((f"{name} kernels", cost))


def _memory(report: Report, platform: Platform) -> None:
    free, total = platform.memory_info()
    rows: dict[str, Any] = {"free": size(free), "total": size(total)}
    limit = cpu.memory_limit() if platform.shares_memory else None
    if limit is not None:
        rows["limit"] = f"{size(limit)}, set by the control group"
    report.sections["memory"] = rows


def _cache(report: Report, directory: Path) -> None:
    rows: dict[str, Any] = {"directory": str(directory)}
    report.sections["cache directory"] = rows
    existing = next((path for path in (directory, *directory.parents) if path.is_dir()), Path("/"))
    try:
        free = shutil.disk_usage(existing).free
    except OSError as error:
        report.missing.append((f"the cache directory {directory}", f"models cannot be kept: {error.strerror}"))
        return
    rows["free space"] = size(free)
    held = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) if directory.is_dir() else 0
    rows["holds"] = size(held)
    if free < 2 * _DEMO_MODEL_BYTES:
        cost = f"fetching the demo model takes {size(2 * _DEMO_MODEL_BYTES)}, only {size(free)} are free in {directory}"
        report.missing.append(("disk space", cost))
    if importlib.util.find_spec("pip") is None and shutil.which("uv") is None:
        report.missing.append(
            ("pip or uv", f"the demo model comes from the hub, in another precision ({sys.executable})")
        )


def size(count: float) -> str:
    """1610612736 -> "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
