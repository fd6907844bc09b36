#!/usr/bin/env python3
"""From `octavo serve` to the first byte of /health and to the first token, on the demo model (or --model):

    first   no file in memory, no compiled Python: as on a machine just installed, with the model already there
    cold    no file in memory: as after a reboot
    warm    as the time before

Files are put out of memory through /proc/sys/vm/drop_caches where that may be written, else file by file, which leaves
those that another process has mapped. JSON to stdout.

    benchmarks/startup_server.py [--runs 3] [--model M] [--kinds first cold warm] [-- FLAGS OF octavo serve]
"""

from __future__ import annotations

import argparse
import json
import os
import site
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from serving import ROOT, started

from octavo.cli.bench.figures import repetitions
from octavo.config.env import cache_directory

KINDS = ("first", "cold", "warm")
_DROP = Path("/proc/sys/vm/drop_caches")


def forget_files(model: str | None) -> str:
    """Puts what a start reads out of memory. Says how."""
    os.sync()
    try:
        _DROP.write_text("3\n")
        return "drop_caches"
    except OSError:
        pass
    for path in files(model):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return "file by file"


def files(model: str | None) -> Iterator[Path]:
    """What a start may read: Python with its packages, octavo, and the model."""
    folders = [*map(Path, site.getsitepackages()), Path(os.__file__).parent, ROOT / "octavo", cache_directory()]
    if model is not None and Path(model).exists():
        folders.append(Path(model))
    for folder in folders:
        if folder.is_file():
            yield folder
        else:
            yield from (path for path in folder.rglob("*") if path.is_file())


def measure(kind: str, model: str | None, flags: list[str]) -> tuple[dict[str, float], str]:
    """(seconds to each stage, how files were put out of memory)"""
    how = forget_files(model) if kind != "warm" else ""
    with tempfile.TemporaryDirectory(prefix="octavo-startup-") as empty:
        environment = {"PYTHONPYCACHEPREFIX": empty} if kind == "first" else {}
        with started(model, *flags, environment=environment) as server:
            return server.seconds, how


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="Of each kind; of `first` one.")
    parser.add_argument("--model")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("flags", nargs="*", help="Of octavo serve, behind --.")
    args = parser.parse_args()
    report: dict[str, Any] = {"model": args.model or "demo"}
    with started(args.model, *args.flags):
        pass  # the model is there, and the system's own caches are as they will be
    for kind in args.kinds:
        runs = []
        for run in range(1 if kind == "first" else args.runs):
            seconds, how = measure(kind, args.model, args.flags)
            runs.append(seconds)
            print(f"{kind} {run + 1}: first token after {seconds['first_token']:.2f} s", file=sys.stderr)
        report[kind] = {stage: repetitions([run[stage] for run in runs]) for stage in runs[0]}
        if how:
            report[kind]["files_forgotten"] = how
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
