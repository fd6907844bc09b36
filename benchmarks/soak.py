#!/usr/bin/env python3
"""Many streams for a while: `octavo serve` on the demo model (or --model) and --streams clients that each ask again as
soon as they have an answer. Reports errors, tokens per second, times to the first token, memory of the front end and
the core over time and how it grows, each one's share of CPU time, and how soon the server listens, is ready and
answers. JSON to stdout; exit status 1 if there was any error.

    benchmarks/soak.py [--streams 256] [--seconds 120] [--model M] [-- FLAGS OF octavo serve]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from serving import Server, started, stream

from octavo.cli.bench.figures import distribution, rounded

TOKENS = 48  # of an answer
CACHE = "512MiB"
_SAMPLES = 40  # of memory


class Counts:
    def __init__(self) -> None:
        self.answers = self.chunks = self.tokens = 0
        self.errors: list[str] = []
        self.first_tokens: list[float] = []  # seconds


async def keep_asking(server: Server, index: int, until: float, counts: Counts) -> None:
    turn = 0
    while time.monotonic() < until:
        turn += 1
        body = {
            "prompt": f"Story number {index}.{turn}: once upon a time",
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "stream_options": {"include_usage": True},
        }
        asked, num_chunks, finished, tokens = time.perf_counter(), 0, False, 0
        try:
            async for data in stream(server.host, server.port, body):
                if not num_chunks:
                    counts.first_tokens.append(time.perf_counter() - asked)
                num_chunks += 1
                if b'{"error":' in data:
                    raise OSError(data.decode())
                finished = finished or b'"finish_reason":"length"' in data
                if b'"choices":[]' in data:
                    tokens = json.loads(data)["usage"]["completion_tokens"]
            if not finished or tokens != TOKENS:
                raise OSError(f"an answer of {tokens} tokens, finished: {finished}")
            counts.answers += 1
        except OSError as error:
            counts.errors.append(f"{type(error).__name__}: {error}")
        counts.chunks += num_chunks
        counts.tokens += tokens


async def watch_memory(processes: dict[str, list[psutil.Process]], seconds: float) -> dict[str, list[float]]:
    """MiB by kind of process, and the "seconds" at which that was."""
    began, series = time.monotonic(), {kind: list[float]() for kind in ("seconds", *processes)}
    while time.monotonic() < began + seconds:
        await asyncio.sleep(seconds / _SAMPLES)
        series["seconds"].append(round(time.monotonic() - began, 1))
        for kind, members in processes.items():
            series[kind].append(round(sum(member.memory_info().rss for member in members) / 2**20, 1))
    return series


def growth(seconds: list[float], sizes: list[float]) -> float:
    """MiB per minute, fitted to the second half: the first one fills caches."""
    half = len(sizes) // 2
    return rounded(statistics.linear_regression(seconds[half:], sizes[half:]).slope * 60)


async def soak(server: Server, num_streams: int, seconds: float) -> dict[str, Any]:
    counts, processes = Counts(), server.processes()

    def cpu_seconds() -> dict[str, float]:
        everybody = {**processes, "client": [psutil.Process()]}
        return {kind: sum(sum(p.cpu_times()[:2]) for p in members) for kind, members in everybody.items()}

    before, began = cpu_seconds(), time.monotonic()
    watching = asyncio.create_task(watch_memory(processes, seconds))
    await asyncio.gather(*(keep_asking(server, i, began + seconds, counts) for i in range(num_streams)))
    took = time.monotonic() - began
    spent = {kind: after - before[kind] for kind, after in cpu_seconds().items()}
    memory = await watching
    return {
        "answers": counts.answers,
        "errors": len(counts.errors),
        "first_errors": counts.errors[:5],
        "tokens_per_second": rounded(counts.tokens / took),
        "chunks_per_token": rounded(counts.chunks / max(counts.tokens, 1)),
        "first_token_ms": distribution(counts.first_tokens, 1000),
        "cpu_seconds": {kind: rounded(value) for kind, value in spent.items()},
        "front_end_cpu_share": rounded(spent["front end"] / (spent["front end"] + spent["core"])),
        "rss_growth_mib_per_minute": {kind: growth(memory["seconds"], memory[kind]) for kind in processes},
        "rss_mib": memory,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--model")
    parser.add_argument("flags", nargs="*", help="Of octavo serve, behind --.")
    args = parser.parse_args()
    # A cache that is full long before the end: its pages become resident as they are first used.
    flags = ["--max-num-seqs", str(args.streams), "--kv-cache-memory-bytes", CACHE]
    flags += ["--disable-uvicorn-access-log", *args.flags]
    with started(args.model, *flags) as server:
        report = asyncio.run(soak(server, args.streams, args.seconds))
        trouble = [line.rstrip() for line in server.log if " E " in line or "Traceback" in line]
    head = {"model": args.model or "demo", "streams": args.streams, "seconds": args.seconds, "start": server.seconds}
    text = json.dumps({**head, **report, "log_errors": trouble[:5]}, indent=1)
    print(re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text))  # a list on one line
    return 1 if report["errors"] or trouble else 0


if __name__ == "__main__":
    sys.exit(main())
