"""From nothing to the first token, in a process of its own each time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from octavo.cli.bench.figures import distribution, repetitions, rounded
from octavo.errors import OctavoError

_CHILD = "from octavo.cli.bench.startup import child; child()"


def measure_startup(
    options: dict[str, Any], shape: dict[str, Any] | None, count: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """`count` starts, one after the other. The first may read files that the others find in memory."""
    totals: list[float] = []
    parts: dict[str, list[float]] = {}
    for start in range(count):
        total, marks = _start_once(json.dumps({"options": options, "shape": shape}))
        totals.append(total)
        for name, seconds in marks.items():
            parts.setdefault(name, []).append(seconds)
        tell(f"startup: {start + 1} of {count}: {total:.2f} s to the first token")
    return {**repetitions(totals), "first_start_seconds": rounded(totals[0])} | {
        f"{name}_seconds": distribution(seconds) for name, seconds in parts.items()
    }


def _start_once(message: str) -> tuple[float, dict[str, float]]:
    """(seconds from the start of the process to its first token, its own marks)"""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(message)
        process.stdin.close()
        line = process.stdout.readline()
        total = time.perf_counter() - started
        rest = process.stderr.read()
    try:
        marks: dict[str, float] = json.loads(line)
    except ValueError:
        last = rest.strip().splitlines()[-1:] or ["it said nothing"]
        raise OctavoError(f"the engine did not start: {last[0]}") from None
    return total, marks


def child() -> None:
    """What the process of one start runs: marks as one line of JSON as soon as there is a token."""
    message = json.load(sys.stdin)
    marks = {}
    before = time.perf_counter()
    llm_module = import_module("octavo.llm")
    import_module("octavo.engine.assemble")
    params = import_module("octavo.core.params").SamplingParams(
        temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False
    )
    marks["import"] = time.perf_counter() - before
    before = time.perf_counter()
    llm = llm_module.LLM(message["shape"] or message["options"].pop("model", None), **message["options"])
    marks["load"] = time.perf_counter() - before
    before = time.perf_counter()
    llm.generate([10, 11, 12, 13], params, use_tqdm=False)
    marks["first_token"] = time.perf_counter() - before
    print(json.dumps(marks), flush=True)
    llm.shutdown()
