#!/usr/bin/env python3
"""How long a start takes on a CPU, and how much memory serving does; JSON to stdout.

    start   from the process's start to the first token, `octavo serve` and one `LLM(...).generate` alike: first with no
            packed weights on disk, then as every later time. Files are in memory, as when a program is started again.
    memory  of all processes together (PSS: a page that several share counts once) while 32 streams run. By process, and
            by what the pages are: private ones or those of files.
    full    the same, and then with the whole cache written.

    benchmarks/cpu_start.py [--model M] [--runs 5] [--what start memory full] [-- FLAGS OF octavo serve]

Seconds of processor time stand beside those of the clock: they mean something on a busy machine too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from serving import ROOT, Server, started, stream

from octavo.config.checkpoint import find_checkpoint

GIB = 1 << 30
STREAMS, REQUESTS, TOKENS_IN, TOKENS_OUT = 32, 96, 128, 64
FILL_TOKENS = 1000  # of a prompt that is there to be kept
_PACKED = "OCTAVO_PACKED_WEIGHTS_GIB"

_ONE_SHOT = """
import os, sys, time, json
from octavo import LLM, SamplingParams
llm = LLM(sys.argv[1] or None, **json.loads(sys.argv[2]))
llm.generate("Hello", SamplingParams(max_tokens=1, ignore_eos=True), use_tqdm=False)
print(json.dumps({"at": time.time(), "cpu": sum(os.times()[:2])}), flush=True)
os._exit(0)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--runs", type=int, default=5, help="Later starts.")
    parser.add_argument("--what", nargs="+", choices=("start", "memory", "full"), default=["start", "memory"])
    parser.add_argument("--options", default="{}", help="JSON: engine options, for both ways to start.")
    args = parser.parse_args()
    options = json.loads(args.options)
    report: dict[str, Any] = {"model": args.model or "demo", "options": options, "cores": os.cpu_count()}
    if "start" in args.what:
        server(args.model, options)  # compiled Python, files in memory
        report["first start"] = first_starts(model_path(args.model), options)
        report["second start"] = {
            "server": medians([server(args.model, options) for _ in range(args.runs)]),
            "one-shot": medians([one_shot(args.model, options) for _ in range(args.runs)]),
            "one-shot, packed anew": medians([one_shot(args.model, options, {_PACKED: "0"}) for _ in range(args.runs)]),
        }
    if "memory" in args.what or "full" in args.what:
        report["memory"] = memory(args.model, options, fill="full" in args.what)
    print(json.dumps(report, indent=1))


# ---- start -----------------------------------------------------------------------------------------------------------


def model_path(model: str | None) -> str:
    """Of the demo model too, which is then found whatever the cache directory is."""
    return str(find_checkpoint(model).path)


def first_starts(model: str, options: dict[str, Any]) -> dict[str, Any]:
    """With a cache directory that is empty."""
    found = {}
    for name, start in (("server", server), ("one-shot", one_shot)):
        with tempfile.TemporaryDirectory(prefix="octavo-start-") as empty:
            found[name] = start(model, options, {"OCTAVO_CACHE": empty})
    return found


def flags_of(options: dict[str, Any]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def server(model: str | None, options: dict[str, Any], environment: dict[str, str] | None = None) -> dict[str, float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    opened: list[float] = []
    watch = threading.Thread(target=lambda: opened.append(seconds_until_open(port)))
    watch.start()
    with started(model, "--port", str(port), *flags_of(options), environment=environment) as running:
        watch.join()
        found = {"port_open": round(opened[0], 3)}
        found |= {name: round(seconds, 3) for name, seconds in running.seconds.items()}
        for kind, processes in running.processes().items():
            found[f"processor, {kind}"] = round(sum(sum(one.cpu_times()[:2]) for one in processes), 3)
    print("server", found, file=sys.stderr)
    return found


def seconds_until_open(port: int) -> float:
    """Until connections are taken, if not answered."""
    began = time.perf_counter()
    while time.perf_counter() - began < 60:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            time.sleep(0.005)
    return time.perf_counter() - began


def one_shot(model: str | None, options: dict[str, Any], environment: dict[str, str] | None = None) -> dict[str, float]:
    begun = time.time()
    run = subprocess.run(
        [sys.executable, "-c", _ONE_SHOT, model or "", json.dumps(options)],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    said = json.loads(run.stdout.splitlines()[-1])
    found = {"first_token": round(said["at"] - begun, 3), "processor": round(said["cpu"], 3)}
    print("one-shot", found, file=sys.stderr)
    return found


def medians(runs: list[dict[str, float]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: {"median": round(statistics.median(run[name] for run in runs), 3), "best": min(run[name] for run in runs)}
        for name in runs[0]
    }
    return {"runs": len(runs), **found}


# ---- memory ----------------------------------------------------------------------------------------------------------


class Watch:
    """The largest sum of all processes' PSS that was seen, looked at ten times a second."""

    def __init__(self, process: int) -> None:
        self.peak, self.at_peak = 0, {}  # type: tuple[int, dict[str, Any]]
        self._root, self._over = psutil.Process(process), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def look(self) -> int:
        found, total = {}, 0
        for process in [self._root, *self._root.children(recursive=True)]:
            try:
                lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
                name = next((word for word in process.cmdline() if word.startswith("octavo.")), "front end")
            except (OSError, psutil.Error):
                continue
            sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
            parts = {"all": sizes["Pss"], "private": sizes["Pss_Anon"], "files": sizes["Pss_File"]}
            found[f"{name} {process.pid}"] = {part: round(size / GIB, 3) for part, size in parts.items()}
            total += sizes["Pss"]
        if total > self.peak:
            self.peak, self.at_peak = total, found
        return total

    def so_far(self) -> dict[str, Any]:
        self.look()
        return {"gib": round(self.peak / GIB, 3), "processes": self.at_peak}

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.1):
            self.look()


def memory(model: str | None, options: dict[str, Any], fill: bool) -> dict[str, Any]:
    flags = flags_of({"kv_cache_memory_bytes": GIB, **options})
    with started(model, *flags) as running:
        watch = Watch(running.process.pid)
        report: dict[str, Any] = {"ready": watch.so_far()}
        begun = time.perf_counter()
        asyncio.run(load(running, REQUESTS, TOKENS_IN, TOKENS_OUT))
        report["32 streams"] = {
            **watch.so_far(),
            "out_tokens_per_second": round(REQUESTS * TOKENS_OUT / (time.perf_counter() - begun), 1),
        }
        if fill:
            cached = cache_tokens(running)
            asyncio.run(load(running, 1 + cached // FILL_TOKENS, FILL_TOKENS, 1))
            report["the whole cache written"] = {**watch.so_far(), "cache_tokens": cached}
        watch.close()
    for name, found in report.items():
        print(f"{name}: {found['gib']} GiB", file=sys.stderr)
    return report


def cache_tokens(running: Server) -> int:
    """As the log tells it: "cache 1.00 GiB, 2912 blocks of 16 tokens"."""
    for line in running.log:
        if " blocks of " in line:
            words = line.replace(",", "").split()
            at = words.index("blocks")
            return int(words[at - 1]) * int(words[at + 2])
    raise SystemExit("the log does not say how large the cache is")


async def load(running: Server, requests: int, tokens_in: int, tokens_out: int) -> None:
    """So many requests of random tokens, STREAMS at a time."""
    generator = random.Random(tokens_in)
    prompts = [[generator.randrange(10, 40_000) for _ in range(tokens_in)] for _ in range(requests)]
    places = asyncio.Semaphore(STREAMS)

    async def one(prompt: list[int]) -> None:
        async with places:
            body = {"prompt": prompt, "max_tokens": tokens_out, "ignore_eos": True, "temperature": 0}
            async for _ in stream(running.host, running.port, body):
                pass

    await asyncio.gather(*(one(prompt) for prompt in prompts))


if __name__ == "__main__":
    main()
