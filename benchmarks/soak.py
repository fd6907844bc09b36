#!/usr/bin/env python3
"""Many streams for a while: `octavo serve` on the demo model (or --model) and --streams clients that each ask again as
soon as they have an answer. Reports errors, tokens, memory of both processes over time, the front end's share of CPU
time, and how soon the server listens, is ready and answers. JSON to stdout.

    benchmarks/soak.py [--streams 256] [--seconds 120] [--model M]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]


def start(model: str | None, flags: list[str]) -> tuple[subprocess.Popen[str], str, dict[str, float]]:
    """The server, its address, and the seconds it took to listen, to answer /health and to be ready."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "octavo", "serve", *([model] if model else []), "--port", "0", *flags]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        found = re.search(r"listening at (\S+);", line)
        if found is not None:
            break
    else:
        raise SystemExit("the server ended before it listened")
    threading.Thread(target=lambda: [None for _ in process.stderr], daemon=True).start()
    url = found[1].replace("0.0.0.0", "127.0.0.1")
    seconds = {"listens": time.perf_counter() - began}
    with httpx.Client(base_url=url, timeout=60) as client:
        client.get("/health")
        seconds["first byte of /health"] = time.perf_counter() - began
        while client.get("/health").status_code != 200:
            time.sleep(0.02)
        seconds["ready"] = time.perf_counter() - began
        client.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 1}).raise_for_status()
        seconds["first token"] = time.perf_counter() - began
    return process, url, {name: round(value, 2) for name, value in seconds.items()}


async def keep_asking(client: httpx.AsyncClient, index: int, until: float, counts: dict[str, int]) -> None:
    while time.monotonic() < until:
        body = {
            "prompt": f"Story number {index}: once upon a time",
            "max_tokens": 48,
            "stream": True,
            "ignore_eos": True,
        }
        try:
            finished = False
            async with client.stream("POST", "/v1/completions", json=body) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        event = json.loads(line[6:])
                        counts["errors"] += "error" in event
                        counts["chunks"] += 1
                        finished |= any(choice["finish_reason"] for choice in event.get("choices", ()))
            counts["answers"] += finished
            counts["errors"] += not finished
        except httpx.HTTPError as error:
            counts["errors"] += 1
            print(f"{type(error).__name__}: {error}", file=sys.stderr)


async def soak(url: str, processes: list[psutil.Process], streams: int, seconds: float) -> dict[str, Any]:
    counts = {"answers": 0, "chunks": 0, "errors": 0}
    memory: list[list[float]] = []
    before = [sum(p.cpu_times()[:2]) for p in processes]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        until = time.monotonic() + seconds
        tasks = [asyncio.create_task(keep_asking(client, i, until, counts)) for i in range(streams)]
        while time.monotonic() < until:
            await asyncio.sleep(seconds / 12)
            memory.append([round(p.memory_info().rss / 2**20, 1) for p in processes])
        await asyncio.gather(*tasks)
    spent = [sum(p.cpu_times()[:2]) - at for p, at in zip(processes, before, strict=True)]
    return {
        **counts,
        "front_end_cpu_share": round(spent[0] / sum(spent), 3),
        "rss_mib_front_end": [m[0] for m in memory],
        "rss_mib_core": [m[1] for m in memory],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--model")
    args = parser.parse_args()
    process, url, started = start(args.model, ["--max-num-seqs", str(args.streams), "--disable-uvicorn-access-log"])
    try:
        front = psutil.Process(process.pid)
        core = next(p for p in front.children(recursive=True) if "octavo.engine.core_process" in p.cmdline())
        report = asyncio.run(soak(url, [front, core], args.streams, args.seconds))
        report = {"streams": args.streams, "seconds": args.seconds, "start": started, **report}
    finally:
        process.terminate()
        process.wait(30)
    print(json.dumps(report, indent=1))
    return 1 if report["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
