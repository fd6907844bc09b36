"""Attention kernels on one CUDA GPU: microseconds a layer, by replay of captured graphs.

    python benchmarks/gpu_attention.py --json attention.json

The cases are 32 query heads and 8 key/value heads of 128, bfloat16, blocks of 16 tokens in random order. The cache is
laid out as an engine's: the pages of LAYERS layers lie side by side in a block, and a graph runs over several of them:
nothing is found in the L2 cache that would not be. "flat" figures have one layer and the same keys in every launch, as
kernel benchmarks usually do. Each kernel's answer is first compared with float32 arithmetic on some of the queries;
the error of torch's own attention in bfloat16 on the same queries stands beside it.

Floors: bytes of keys, values, queries and results over --bandwidth, or operations over --flops, whichever is longer.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from octavo.attention.backend import SHARED_PREFIX, AttentionCall, GroupStep, StepContext
from octavo.attention.triton_paged import TritonPaged
from octavo.ops.attention import PrefixGroups
from octavo.ops.triton.attention_work import DecodeConfig, PrefillConfig, decode_config, device_limits

HEADS, KV_HEADS, HEAD_DIM, PAGE = 32, 8, 128, 16
LAYERS = 32  # whose pages share a block
DTYPE = torch.bfloat16
DEVICE = torch.device("cuda")
FATAL = getattr(torch, "AcceleratorError", ())  # after these the device is of no more use
SCALE = HEAD_DIM**-0.5
PAGE_PLACES = 2 * PAGE * KV_HEADS * HEAD_DIM

Rows = list[tuple[int, int]]  # (query tokens, tokens in all)

# And the microseconds of the fastest kernel elsewhere, on an H200 with a flat cache, where it was measured.
CASES: dict[str, tuple[Rows, float | None]] = {
    "decode 1 x 1k": ([(1, 1024)], 8.4),
    "decode 8 x 16k": ([(1, 16384)] * 8, 129.0),
    "decode 64 x 1k": ([(1, 1024)] * 64, 73.8),
    "decode 256 x 700": ([(1, 700)] * 256, 192.0),
    "decode 256 x 100 to 1900": ([(1, 100 + row * 7919 % 1801) for row in range(256)], None),
    "verify 64 x 4 at 1k": ([(4, 1024)] * 64, 78.0),
    "prefill 1 x 8192": ([(8192, 8192)], 903.0),
    "prefill 16 x 1024": ([(1024, 1024)] * 16, 332.0),
    "mixed 2048 of 4096 + 128 x 800": ([(1, 800)] * 128 + [(2048, 4096)], 300.0),
}
DECODES = [name for name in CASES if name.startswith(("decode", "verify"))]
PREFILLS = [name for name in CASES if name.startswith("prefill")]

DECODE_CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "4 stages": {"num_stages": 4},
    "32 keys, 4 stages": {"block_n": 32, "num_stages": 4},
    "128 keys, 8 warps": {"block_n": 128, "num_warps": 8},
    "8 warps": {"num_warps": 8},
    "2 warps": {"num_warps": 2},
    "half the splits": {"fill": 0.5},
    "twice the splits": {"fill": 2.0},
    "chunks from 64": {"min_chunk": 64},
    "chunks from 256": {"min_chunk": 256},
    "half the programs": {"max_programs": 0.5},
    "combined apart": {"fused": False},
    "stream, 2 a processor": {"fill": 0.25, "num_warps": 8, "stream": True},
    "stream, 1 a processor": {"fill": 0.125, "block_n": 128, "num_warps": 8, "stream": True},
}
PREFILL_CONFIGS = [
    PrefillConfig(128, 128, 8, 3),
    PrefillConfig(128, 64, 8, 3),
    PrefillConfig(128, 64, 8, 4),
    PrefillConfig(128, 64, 8, 2, max_registers=128),  # two programs a processor, as the next
    PrefillConfig(128, 32, 8, 4, max_registers=128),
    PrefillConfig(64, 64, 4, 2),
]


@dataclass
class Problem:
    """One step's tensors. The cache of layer i is `layers[i]`."""

    rows: Rows
    q: torch.Tensor
    layers: list[torch.Tensor]
    block_table: torch.Tensor
    query_start: torch.Tensor
    seq_lens: torch.Tensor
    query_lens: list[int]


class Cache:
    """Blocks for the largest case, filled once."""

    def __init__(self, num_blocks: int, device: torch.device) -> None:
        self.num_blocks = num_blocks
        self.buffer = torch.empty(num_blocks, LAYERS * PAGE_PLACES, dtype=DTYPE, device=device)
        for part in self.buffer.split(1024):
            part.normal_()
        self.flat = self.buffer.view(-1, PAGE_PLACES)[:num_blocks]

    def layers(self, count: int) -> list[torch.Tensor]:
        pages = self.buffer.split(PAGE_PLACES, 1)[:count]
        return [page.unflatten(1, (2, PAGE, KV_HEADS, HEAD_DIM)) for page in pages]

    def one(self) -> list[torch.Tensor]:
        return [self.flat.unflatten(1, (2, PAGE, KV_HEADS, HEAD_DIM))]


def problem(rows: Rows, layers: list[torch.Tensor], pad_rows: int = 0, pad_tokens: int = 0, seed: int = 0) -> Problem:
    device, generator = layers[0].device, torch.Generator().manual_seed(seed)
    widths = [-(-length // PAGE) for _, length in rows]
    ids = (torch.randperm(len(layers[0]) - 1, generator=generator) + 1).to(torch.int32)
    total_rows = max(len(rows), pad_rows)
    table = torch.zeros(total_rows, max(widths), dtype=torch.int32)
    at = 0
    for row, width in enumerate(widths):
        table[row, :width] = ids[at : at + width]
        at += width
    query_lens = [tokens for tokens, _ in rows] + [0] * (total_rows - len(rows))
    lengths = [length for _, length in rows] + [0] * (total_rows - len(rows))
    query_start = torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32).to(device)
    q = torch.randn(max(sum(query_lens), pad_tokens), HEADS, HEAD_DIM, device=device, dtype=DTYPE)
    seq_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    return Problem(rows, q, layers, table.to(device), query_start, seq_lens, query_lens)


def step_of(p: Problem) -> StepContext:
    no_slots = torch.zeros(1, dtype=torch.int64, device=p.q.device)
    return StepContext(
        positions=no_slots.expand(len(p.q)),
        query_start=p.query_start,
        seq_lens=p.seq_lens,
        query_lens=p.query_lens,
        max_seq_lens=[0] * len(p.query_lens),
        groups=[GroupStep(p.block_table, no_slots)],
        rows=no_slots,
    )


CALL = AttentionCall(SCALE, HEADS, KV_HEADS, HEAD_DIM)


def ours(
    decode: DecodeConfig | None = None, prefill: PrefillConfig | None = None, make: type[TritonPaged] = TritonPaged
) -> TritonPaged:
    """A backend, with these configurations instead of its own."""
    backend = make()
    own = backend._config

    def config(*args: Any) -> tuple[DecodeConfig, PrefillConfig]:
        its_decode, its_prefill = own(*args)
        return decode or its_decode, prefill or its_prefill

    backend._config = config  # type: ignore[method-assign]
    return backend


# ---- right? ----------------------------------------------------------------------------------------------------------


def errors(p: Problem, out: torch.Tensor, layer: int = 0, per_row: int = 48) -> tuple[float, float]:
    """||found - exact|| / ||exact|| over some queries of some rows: the kernel's, and that of torch's own attention."""
    generator = torch.Generator().manual_seed(5)
    found, own, exact = [], [], []
    step = max(1, len(p.rows) // 6)
    for row in [*range(0, len(p.rows), step), len(p.rows) - 1]:
        tokens, length = p.rows[row]
        picked = torch.randperm(tokens, generator=generator)[:per_row].to(p.q.device)
        picked[-1] = tokens - 1
        blocks = p.block_table[row, : -(-length // PAGE)].long()
        k, v = (p.layers[layer][blocks, part].flatten(0, 1)[:length].transpose(0, 1) for part in (0, 1))  # [K, L, H]
        at = int(p.query_start[row]) + picked
        q = p.q[at].transpose(0, 1)  # [N, P, H]
        seen = torch.arange(length, device=q.device) <= (length - tokens + picked)[:, None]
        k, v = (x.repeat_interleave(HEADS // KV_HEADS, 0) for x in (k, v))
        scores = (q.float() @ k.float().transpose(1, 2) * SCALE).masked_fill(~seen, -math.inf)
        exact.append((scores.softmax(-1) @ v.float()).transpose(0, 1).flatten())
        attention = torch.nn.functional.scaled_dot_product_attention
        own.append(attention(q[None], k[None], v[None], seen[None, None], scale=SCALE)[0].transpose(0, 1).flatten())
        found.append(out[at].flatten())
    right = torch.cat(exact)
    return tuple(float((torch.cat(x).float() - right).norm() / right.norm()) for x in (found, own))  # type: ignore[return-value]


# ---- fast? -----------------------------------------------------------------------------------------------------------


def microseconds(launch: Callable[[], Any], parts: int, budget: float = 0.04) -> float:
    """Of one of the `parts` that `launch` submits: the best of three times `budget` seconds of replays."""
    launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    graph.replay()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
    best, repeats = math.inf, 1
    for attempt in range(4):
        begin.record()
        for _ in range(repeats):
            graph.replay()
        end.record()
        end.synchronize()
        each = begin.elapsed_time(end) / repeats  # ms
        if attempt:
            best = min(best, each)
        repeats = max(1, min(500, int(budget * 1e3 / each)))
    graph.reset()
    return best * 1e3 / parts


def run_layers(backend: TritonPaged, p: Problem, step: StepContext) -> list[torch.Tensor]:
    return [backend.forward(p.q, cache, step, 0, CALL) for cache in p.layers]


def measure(backend: TritonPaged, p: Problem) -> tuple[float, float, float]:
    """(microseconds a layer without the plan, error, torch's error)."""
    step = step_of(p)
    step.groups[0].plan = backend.plan(step, 0)
    out = backend.forward(p.q, p.layers[0], step, 0, CALL)
    found, own = errors(p, out)
    return microseconds(lambda: run_layers(backend, p, step), len(p.layers)), found, own


def work_of(rows: Rows) -> tuple[float, float]:
    """(bytes, operations) of a layer."""
    keys = sum(length for _, length in rows)
    tokens = sum(tokens for tokens, _ in rows)
    num_bytes = 2 * (2 * keys * KV_HEADS * HEAD_DIM + 2 * tokens * HEADS * HEAD_DIM)
    pairs = sum(tokens * (length - tokens) + tokens * (tokens + 1) / 2 for tokens, length in rows)
    return num_bytes, 4 * pairs * HEADS * HEAD_DIM


class Report:
    """Prints each line and writes the JSON anew with it: a run that is cut short leaves what it had."""

    def __init__(self, path: Path | None, bandwidth: float, flops: float) -> None:
        self._path, self._bandwidth, self._flops = path, bandwidth, flops
        self._started = time.perf_counter()
        self.lines: list[dict[str, Any]] = []
        self.facts = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "triton": __import__("triton").__version__,
            "bandwidth": bandwidth,
            "flops": flops,
        }

    def head(self, text: str) -> None:
        print(f"\n{text}  [{time.perf_counter() - self._started:.0f} s]", flush=True)

    def line(self, section: str, case: str, what: str, us: float, rows: Rows, **more: Any) -> None:
        num_bytes, operations = work_of(rows)
        floor = max(num_bytes / self._bandwidth, operations / self._flops) * 1e6
        rate = f"{num_bytes / us * 1e-6:6.2f} TB/s {operations / us * 1e-6:6.0f} TFLOP/s"
        shown = {name: f"{value:.2g}" if isinstance(value, float) else value for name, value in more.items()}
        extra = "  ".join(f"{name} {value}" for name, value in shown.items())
        print(f"  {case:32} {what:40} {us:8.1f} us  floor {floor:7.1f}  {rate}  {extra}", flush=True)
        self.lines.append({"section": section, "case": case, "what": what, "us": us, "floor_us": floor, **more})
        self.write()

    def fail(self, section: str, case: str, what: str, error: BaseException) -> None:
        text = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1][:200]
        print(f"  {case:32} {what:40} FAILED: {text}", flush=True)
        self.lines.append({"section": section, "case": case, "what": what, "error_text": text})
        self.write()

    def write(self) -> None:
        if self._path is not None:
            document = {**self.facts, "seconds": time.perf_counter() - self._started, "lines": self.lines}
            self._path.write_text(json.dumps(document, indent=1))


def sweep_decode(report: Report, cache: Cache, names: Sequence[str]) -> DecodeConfig:
    report.head("decode kernel, 8 layers a graph")
    base = decode_config(HEAD_DIM, DTYPE, device_limits(cache.buffer.device))
    score: dict[str, float] = {}
    problems = {case: problem(CASES[case][0], cache.layers(8)) for case in DECODES}
    configs: dict[str, DecodeConfig] = {}
    for name in names:
        change = DECODE_CONFIGS[name]
        change = {k: int(getattr(base, k) * v) if isinstance(v, float) else v for k, v in change.items()}
        configs[name] = replace(base, **change)
        backend = ours(decode=configs[name])
        try:
            for case, p in problems.items():
                us, found, own = measure(backend, p)
                report.line("decode", case, name, us, p.rows, error=found, torch_error=own)
                if not found < 4 * own:
                    raise ArithmeticError(f"error {found:.2g}, torch's {own:.2g}")
                score[name] = score.get(name, 0.0) + math.log(us)
        except Exception as error:
            score[name] = math.inf
            report.fail("decode", "", name, error)
            if isinstance(error, FATAL):
                raise
    best = min(score, key=lambda name: score[name])
    print(f"  best: {best} {configs[best]}", flush=True)
    report.facts["decode"] = {"name": best, **asdict(configs[best])}
    return configs[best]


def sweep_prefill(report: Report, cache: Cache, configs: Sequence[PrefillConfig]) -> PrefillConfig:
    report.head("prefill kernel, 2 layers a graph")
    problems = {case: problem(CASES[case][0], cache.layers(2)) for case in PREFILLS}
    score: dict[PrefillConfig, float] = {}
    for config in configs:
        name = "m {block_m} n {block_n} warps {num_warps} stages {num_stages}".format(**asdict(config))
        name += f" registers {config.max_registers}" if config.max_registers else ""
        backend = ours(prefill=config)
        try:
            for case, p in problems.items():
                started = time.perf_counter()
                us, found, own = measure(backend, p)
                seconds = time.perf_counter() - started
                report.line("prefill", case, name, us, p.rows, error=found, torch_error=own, seconds=seconds)
                if not found < 4 * own:
                    raise ArithmeticError(f"error {found:.2g}, torch's {own:.2g}")
                score[config] = score.get(config, 0.0) + math.log(us)
        except Exception as error:
            score[config] = math.inf
            report.fail("prefill", "", name, error)
            if isinstance(error, FATAL):
                raise
    best = min(score, key=lambda config: score[config])
    print(f"  best: {best}", flush=True)
    report.facts["prefill"] = asdict(best)
    return best


def table(report: Report, cache: Cache, backends: dict[str, Callable[[], TritonPaged]]) -> None:
    for layout, layers in (("flat", cache.one()), ("8 layers", cache.layers(8))):
        report.head(f"all cases, {layout}; vs: over the fastest peer's time, which is flat")
        for name, make in backends.items():
            for case, (rows, peer) in CASES.items():
                if name == "flash_triton" and case in DECODES:
                    continue
                try:
                    us, found, own = measure(make(), problem(rows, layers))
                    more = {} if peer is None else {"vs": us / peer}
                    report.line(layout, case, name, us, rows, error=found, torch_error=own, **more)
                except Exception as error:
                    report.fail(layout, case, name, error)
                    if isinstance(error, FATAL):
                        raise


def planning(report: Report, cache: Cache, backends: dict[str, Callable[[], TritonPaged]]) -> None:
    """Padding: graphs over 8 layers that hold the plan too, for real rows in a bucket that is larger, and another
    mixture through the same graph."""
    report.head("padded graphs: plan and 8 layers")
    mixed = CASES["mixed 2048 of 4096 + 128 x 800"][0]
    others: Rows = [(1, 300)] * 77 + [(3, 500), (700, 900), (40, 40), (1000, 3000)]
    decode: Rows = [(1, 800)] * 128
    for name, make in backends.items():
        for case, rows, pad_rows, pad_tokens in (
            ("mixed, 129 rows, 2176 tokens", mixed, 0, 0),
            ("mixed, 1024 rows, 2304 tokens", mixed, 1024, 2304),
            ("decode, 128 rows", decode, 0, 0),
            ("decode, 1024 rows", decode, 1024, 1024),
        ):
            if name == "flash_triton" and rows is decode:
                continue
            try:
                p = problem(rows, cache.layers(8), pad_rows, pad_tokens)
                backend, step = make(), step_of(p)

                def whole(backend: TritonPaged = backend, p: Problem = p, step: StepContext = step) -> Any:
                    step.groups[0].plan = backend.plan(step, 0)
                    return run_layers(backend, p, step)

                us = microseconds(whole, 1)

                def first(backend: TritonPaged = backend, p: Problem = p, step: StepContext = step) -> Any:
                    step.groups[0].plan = backend.plan(step, 0)
                    return backend.forward(p.q, p.layers[0], step, 0, CALL)

                # 8 layers and one differ by 7 without the plan.
                layer = (us - (one := microseconds(first, 1))) / 7
                report.line("padded", case, f"{name}, a layer", layer, rows, plan_us=one - layer)
                if pad_rows and rows is mixed:
                    graph = torch.cuda.CUDAGraph()
                    whole()
                    with torch.cuda.graph(graph):
                        outs = whole()
                    other = problem(others, p.layers, pad_rows, pad_tokens, seed=9)
                    p.block_table[:, : other.block_table.shape[1]] = other.block_table[:, : p.block_table.shape[1]]
                    for mine, its in ((p.query_start, other.query_start), (p.seq_lens, other.seq_lens)):
                        mine.copy_(its)
                    graph.replay()
                    found, own = errors(replace(p, rows=others), outs[3], layer=3)
                    print(f"  {'':32} another mixture through it: error {found:.2g}, torch's {own:.2g}", flush=True)
                    report.lines.append({"section": "replay", "what": name, "error": found, "torch_error": own})
            except Exception as error:
                report.fail("padded", case, name, error)
                if isinstance(error, FATAL):
                    raise


def shared_prefix(
    report: Report,
    cache: Cache,
    make: Callable[[], TritonPaged],
    num_rows: int = 256,
    shared: int = 2048,
    own: int = 64,
) -> None:
    case = f"{num_rows} x ({shared} shared + {own})"
    report.head(f"{case}, 8 layers a graph")
    rows: Rows = [(1, shared + own)] * num_rows
    apart = problem([(1, own)] * num_rows + [(1, shared)], cache.layers(8))
    prefix = apart.block_table[num_rows:, : shared // PAGE].expand(num_rows, -1)
    table = torch.cat((prefix, apart.block_table[:num_rows, : -(-own // PAGE)]), 1).contiguous()
    p = problem([(1, 1)] * num_rows, cache.layers(8))
    p = replace(p, rows=rows, block_table=table, seq_lens=torch.full_like(p.seq_lens, shared + own))
    groups = PrefixGroups(
        torch.arange(num_rows, dtype=torch.int32, device=table.device),
        torch.tensor([0, num_rows], dtype=torch.int32, device=table.device),
        torch.tensor([shared // PAGE], dtype=torch.int32, device=table.device),
        tokens=1,
    )
    for name, extras in (("each row reads it", {}), ("read once", {SHARED_PREFIX: groups})):
        try:
            backend, step = make(), step_of(p)
            step.extras.update(extras)
            step.groups[0].plan = backend.plan(step, 0)
            found, own_error = errors(p, backend.forward(p.q, p.layers[0], step, 0, CALL))

            def launch(backend: TritonPaged = backend, step: StepContext = step) -> Any:
                return run_layers(backend, p, step)

            us = microseconds(launch, 8)
            read: Rows = [*[(1, own)] * num_rows, (1, shared)] if extras else rows  # what has to be read at least
            report.line("prefix", case, name, us, read, error=found, torch_error=own_error)
        except Exception as error:
            report.fail("prefix", case, name, error)
            if isinstance(error, FATAL):
                raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bandwidth", type=float, default=4.3e12, help="bytes a second, for the floors")
    parser.add_argument("--flops", type=float, default=790e12, help="operations a second, for the floors")
    parser.add_argument(
        "--decode-configs", type=int, default=len(DECODE_CONFIGS), help="how many to try, from the first"
    )
    parser.add_argument("--prefill-configs", type=int, default=len(PREFILL_CONFIGS), help="likewise")
    parser.add_argument("--sections", default="decode,prefill,table,padded,prefix")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a CUDA GPU")
    torch.manual_seed(0)
    report = Report(given.json, given.bandwidth, given.flops)
    print(f"{report.facts['device']}, torch {torch.__version__}, triton {report.facts['triton']}")
    sections = given.sections.split(",")
    with torch.inference_mode():
        cache = Cache(1 + max(sum(-(-length // PAGE) for _, length in rows) for rows, _ in CASES.values()), DEVICE)
        torch.cuda.synchronize()
        decode, prefill = None, None
        if "decode" in sections:
            decode = sweep_decode(report, cache, list(DECODE_CONFIGS)[: given.decode_configs])
        if "prefill" in sections:
            prefill = sweep_prefill(report, cache, PREFILL_CONFIGS[: given.prefill_configs])
        backends: dict[str, Callable[[], TritonPaged]] = {"triton_paged": lambda: ours(decode, prefill)}
        try:
            from octavo.attention.flash_triton import FlashTriton

            backends["flash_triton"] = lambda: ours(decode, prefill, FlashTriton)
        except ImportError as error:
            print(f"flash_triton is not measured: {error}")
        if "table" in sections:
            table(report, cache, backends)
        if "padded" in sections:
            planning(report, cache, backends)
        if "prefix" in sections:
            shared_prefix(report, cache, backends["triton_paged"])
    report.head("done")
    report.write()


if __name__ == "__main__":
    main()
