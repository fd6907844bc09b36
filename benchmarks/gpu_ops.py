#!/usr/bin/env python3
"""The fused kernels on one GPU: each at typical shapes, checked against the torch implementation, then timed as a graph
replay (which is how steps run them) beside the floor of its bytes at the card's bandwidth. JSON to stdout or --output.

    benchmarks/gpu_ops.py [--only norm,sampling] [--output FILE]
    benchmarks/gpu_ops.py --linear      products of few rows against the vendor's library; prints a table to paste into
                                        octavo/ops/triton/linear.py
    TRITON_INTERPRET=1 benchmarks/gpu_ops.py --check      no GPU: small shapes, no times
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from octavo.ops import dispatch

BANDWIDTH = {"H200": 4.3e12, "H100": 3.0e12}  # bytes/s that reading reaches
CALLS, REPLAYS = 20, 7  # a graph has so many calls; so many replays are timed
ROWS = (1, 64, 256, 2048, 8192)
HIDDEN, INTERMEDIATE, VOCABULARY = (1024, 4096), (3072, 14336), (128256, 151936)
SAMPLED = (1, 64, 256, 1024)


@dataclass
class Case:
    """One op at one shape. `args` are made anew by `make`, since ops may write to them; `same` compares results."""

    op: str
    shape: str
    make: Callable[[], tuple[Any, ...]]
    bytes: int
    same: Callable[[Any, Any, tuple[Any, ...], tuple[Any, ...]], str | None]
    torch_in_graph: bool = True  # the torch implementation does not wait for the device
    with_torch: bool = True


@dataclass
class Row:
    op: str
    shape: str
    microseconds: float | None = None
    torch_microseconds: float | None = None
    floor_microseconds: float | None = None
    gigabytes_per_second: float | None = None
    first_call_seconds: float | None = None
    wrong: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


# ---- comparisons -----------------------------------------------------------------------------------------------------


def tensors_of(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value for tensor in tensors_of(part)] if isinstance(value, list | tuple) else []


def close(found: Any, expected: Any, args: tuple[Any, ...], expected_args: tuple[Any, ...]) -> str | None:
    """Results, and arguments that were written to, within two roundings."""
    pairs = zip(tensors_of(found) + tensors_of(args), tensors_of(expected) + tensors_of(expected_args), strict=True)
    for a, b in pairs:
        if a.is_floating_point():
            tolerance = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(a.dtype, 1e-5)
            limit = tolerance * (1 + b.double().abs())
            is_same = ((a.double() - b.double()).abs() <= limit) | (a == b) | (a.isnan() & b.isnan())
        else:
            is_same = a == b
        if not is_same.all():
            return f"{int((~is_same).sum())} of {is_same.numel()} values differ"
    return None


def same_kept(found: Any, expected: Any, args: tuple[Any, ...], expected_args: tuple[Any, ...]) -> str | None:
    """Truncated logits. Where the mass of a token decides, sums in another order may move the border by a token."""
    kept, wanted = found > -torch.inf, expected > -torch.inf
    off = (kept != wanted).sum(1)
    allowed = (wanted.sum(1) * 1e-4).clamp(min=1)
    if (off > allowed).any() or int((off > 0).sum()) > max(1, len(off) // 20):
        return f"{int((off > 0).sum())} of {len(off)} rows keep other tokens, up to {int(off.max())} of them"
    return None if torch.equal(found[kept], args[0][kept]) else "kept logits changed"


def mostly_same_ids(found: Any, expected: Any, args: tuple[Any, ...], expected_args: tuple[Any, ...]) -> str | None:
    """Drawn ids: one in a hundred may fall just beside, for the order of sums."""
    off = int((found[0] != expected[0]).sum())
    if off > max(1, len(found[0]) // 100):
        return f"{off} of {len(found[0])} ids differ"
    return close(found[1], expected[1], (), ())


# ---- cases -----------------------------------------------------------------------------------------------------------


class Cases:
    def __init__(self, device: str, is_small: bool) -> None:
        self.device = device
        self.rows = (1, 3) if is_small else ROWS
        self.hidden = (96,) if is_small else HIDDEN
        self.intermediate = (160,) if is_small else INTERMEDIATE
        self.vocabulary = (700,) if is_small else VOCABULARY
        self.sampled = (2,) if is_small else SAMPLED

    def random(self, *shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, device=self.device) * scale).to(dtype)

    def norm(self) -> Iterator[Case]:
        for rows in self.rows:
            for size in self.hidden:
                weight = self.random(size)
                x, residual = self.random(rows, size), self.random(rows, size)
                shape = f"{rows} x {size}"
                yield Case("rms_norm", shape, lambda x=x, w=weight: (x, w, 1e-6), 4 * x.numel(), close)
                yield Case(
                    "add_rms_norm", shape, lambda x=x, r=residual, w=weight: (x, r, w, 1e-6), 8 * x.numel(), close
                )

    def activation(self) -> Iterator[Case]:
        for rows in self.rows:
            for size in self.intermediate:
                x = self.random(rows, 2 * size)
                for op in ("silu_and_mul", "gelu_tanh_and_mul"):
                    yield Case(op, f"{rows} x {size}", lambda x=x: (x,), 6 * rows * size, close)

    def rope(self) -> Iterator[Case]:
        for rows in self.rows:
            for heads, with_norm in ((16, True), (32, False)):
                qkv = self.random(rows, heads + 16, 128)
                cache = self.random(rows // 16 + 2, 2, 16, 8, 128)
                norms = (self.random(128), self.random(128)) if with_norm else (None, None)
                table = torch.rand(4096, 128, device=self.device)
                positions = torch.randint(4096, (rows,), device=self.device)
                slots = torch.randperm(rows, device=self.device) + 16

                def make(
                    qkv: torch.Tensor = qkv,
                    heads: int = heads,
                    rest: tuple[Any, ...] = (positions, table),
                    cache: torch.Tensor = cache,
                    slots: torch.Tensor = slots,
                    norms: tuple[Any, Any] = norms,
                ) -> tuple[Any, ...]:
                    q, k, v = qkv.split((heads, 8, 8), 1)
                    return (q, k, v, *rest, cache.clone(), slots, *norms, 1e-6)

                name = f"{rows} x {heads}+8+8 heads of 128{', normed' if with_norm else ''}"
                yield Case("rope_and_write", name, make, 4 * qkv.numel(), close)

    def batch(self) -> Iterator[Case]:
        for rows, tokens in ((1, 1), (64, 64), (256, 256), (1024, 1024), (128, 2048), (32, 8192)):
            if self.device == "cpu" and rows > 64:
                continue
            counts = [1] * rows
            counts[-1] += tokens - rows
            table = torch.randint(1, 2**20, (rows, 600), dtype=torch.int32, device=self.device)
            known = torch.randint(1, 2**15, (rows, 9600), dtype=torch.int32, device=self.device)
            computed = torch.randint(0, 1000, (rows,), device=self.device)

            def make(
                rows: int = rows,
                tokens: int = tokens,
                counts: list[int] = counts,
                table: torch.Tensor = table,
                known: torch.Tensor = known,
                computed: torch.Tensor = computed,
            ) -> tuple[Any, ...]:
                def empty(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
                    return torch.zeros(*shape, dtype=dtype, device=self.device)

                order = torch.arange(rows, dtype=torch.int32, device=self.device).flip(0)
                return (
                    order,
                    torch.tensor(counts, dtype=torch.int32, device=self.device),
                    known,
                    computed.clone(),
                    [table],
                    16,
                    empty(tokens),
                    empty(tokens),
                    empty(tokens),
                    empty(rows + 1, dtype=torch.int32),
                    empty(rows, dtype=torch.int32),
                    [empty(tokens)],
                    [empty(rows, 600, dtype=torch.int32)],
                )

            size = tokens * 40 + rows * 300
            # a call advances `computed`, so graphs of many calls run on: tables are wide enough for a check alone
            yield Case("build_batch", f"{rows} rows, {tokens} tokens", make, size, close, torch_in_graph=False)
        for rows in self.sampled:
            ids = torch.randint(1000, (rows,), device=self.device)
            order = torch.randperm(rows, device=self.device)

            def make_append(rows: int = rows, order: torch.Tensor = order, ids: torch.Tensor = ids) -> tuple[Any, ...]:
                tokens = torch.zeros(rows, 4096, dtype=torch.int32, device=self.device)
                return order, ids, tokens, torch.zeros(rows, dtype=torch.int64, device=self.device)

            yield Case("append_sampled", f"{rows} rows", make_append, 28 * rows, close, torch_in_graph=False)

    def logits(self, rows: int, size: int, kind: str) -> torch.Tensor:
        """As of random weights ("flat": top_p keeps half the vocabulary), and as of a trained model ("peaked")."""
        logits = self.random(rows, size, dtype=torch.float32, scale=1.0 if kind == "flat" else 2.0)
        if kind == "peaked":
            best = torch.randint(size, (rows, 20), device=self.device)
            logits.scatter_(1, best, torch.rand(rows, 20, device=self.device) * 8 + 10)
        return logits

    def sampling(self) -> Iterator[Case]:
        def full(rows: int, value: float) -> torch.Tensor:
            return torch.full((rows,), value, device=self.device)

        for size in self.vocabulary:
            for rows in self.sampled:
                logits = self.logits(rows, size, "peaked")
                shape, row_bytes = f"{rows} x {size}", 4 * rows * size
                counter = torch.arange(rows, device=self.device)
                yield Case("argmax", shape, lambda x=logits: (x,), row_bytes, close)
                for num_top in (0, 5, 20) if size == self.vocabulary[-1] else ():
                    chosen = logits.argmax(1)
                    yield Case(
                        "gather_logprobs",
                        f"{shape}, top {num_top}",
                        lambda x=logits, c=chosen, n=num_top: (x, c, n),
                        row_bytes,
                        close,
                    )
                for kind in ("peaked", "flat"):
                    logits = self.logits(rows, size, kind)
                    for temperature, top_k, top_p, min_p in (
                        (0.0, 0, 1.0, 0.0),
                        (1.0, 0, 1.0, 0.0),
                        (0.7, 50, 1.0, 0.0),
                        (0.7, 0, 0.9003, 0.0),
                        (0.7, 50, 0.9003, 0.05),
                    ):
                        if top_p == 1.0 and (size != self.vocabulary[-1] or (kind == "flat" and not top_k)):
                            continue
                        columns = (
                            full(rows, temperature),
                            torch.full((rows,), top_k, device=self.device),
                            full(rows, top_p),
                            full(rows, min_p),
                        )
                        yield Case(
                            "choose_tokens",
                            f"{shape} {kind}, temperature {temperature}, top_k {top_k}, top_p {top_p}, min_p {min_p}",
                            lambda x=logits, c=columns, n=counter: (x, *c, n, n),
                            row_bytes,
                            mostly_same_ids,
                            torch_in_graph=False,
                            with_torch=rows <= 64,
                        )
                if size != self.vocabulary[-1] or rows > 256:
                    continue
                peaked = self.logits(rows, size, "peaked")
                k, p, none = torch.full((rows,), 50, device=self.device), full(rows, 0.9003), full(rows, 0.0)
                yield Case(
                    "mask_truncated",
                    f"{shape} peaked, top_k 50, top_p 0.9",
                    lambda x=peaked, k=k, p=p, n=none: (x, k, p, n),
                    2 * row_bytes,
                    same_kept,
                    torch_in_graph=False,
                )
                yield Case(
                    "sample",
                    shape,
                    lambda x=logits, n=counter: (x, dispatch.bound.row_uniform(n, n)),
                    row_bytes,
                    lambda a, b, *_: mostly_same_ids((a, a[:0]), (b, b[:0]), (), ()),
                )
                mask = torch.rand(rows, size, device=self.device) < 0.01
                counts = (torch.rand(rows, size, device=self.device) < 0.001).int()
                yield Case(
                    "apply_penalties",
                    shape,
                    lambda x=logits, m=mask, c=counts, p=p: (x, m, c, p + 0.5, p, p),
                    13 * rows * size,
                    close,
                    torch_in_graph=False,
                )


# ---- time ------------------------------------------------------------------------------------------------------------


def replay_time(call: Callable[[], Any]) -> float:
    """Microseconds of one call: the median of replays of a graph of several."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    graph.replay()
    return statistics.median(timed(graph.replay) for _ in range(REPLAYS)) / CALLS


def eager_time(call: Callable[[], Any]) -> float:
    call()
    return statistics.median(timed(call) for _ in range(3))


def timed(call: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1000


def measure(case: Case, bandwidth: float | None) -> Row:
    fused, plain = (dispatch.implementation_of(case.op, name) for name in ("triton", "torch"))
    args, plain_args = case.make(), case.make()
    began = time.perf_counter()
    found = fused(*args)
    if bandwidth is not None:
        torch.cuda.synchronize()
    row = Row(case.op, case.shape, first_call_seconds=round(time.perf_counter() - began, 3))
    if case.with_torch:
        row.wrong = case.same(found, plain(*plain_args), args, plain_args)
    if bandwidth is None:
        return row
    args = case.make()
    advancing = args[3] if case.op in ("build_batch", "append_sampled") else None
    held = None if advancing is None else advancing.clone()

    def call() -> None:
        fused(*args)
        if held is not None:  # so that a row's tokens do not run out
            advancing.copy_(held)

    row.microseconds = round(replay_time(call), 2)
    if held is not None:
        row.extra["with_a_copy"] = True
    row.floor_microseconds = round(case.bytes / bandwidth * 1e6, 2)
    row.gigabytes_per_second = round(case.bytes / row.microseconds / 1e3, 1)
    if case.with_torch:
        timer = replay_time if case.torch_in_graph else eager_time
        row.torch_microseconds = round(timer(lambda: plain(*plain_args)), 2) if held is None else None
        row.extra["torch"] = "graph" if case.torch_in_graph else "eager"
    return row


# ---- draws and products ----------------------------------------------------------------------------------------------


def check_draws(device: str) -> list[Row]:
    """Chi-square of 100,000 draws for each kind of truncation, against probabilities by a sort in float64."""
    from scipy import stats

    rows = []
    num_draws = 100_000
    logits = torch.randn(1, 500, generator=torch.Generator().manual_seed(1))
    for temperature, top_k, top_p, min_p in (
        (1.0, 0, 1.0, 0.0),
        (0.7, 20, 1.0, 0.0),
        (1.5, 0, 0.8, 0.0),
        (1.0, 0, 1.0, 0.1),
        (1.3, 40, 0.9, 0.05),
    ):
        scaled = np.float64(logits[0].numpy()) / temperature
        weights = np.exp(scaled - scaled.max())
        weights[weights < min_p] = 0
        if top_k:
            weights[scaled < np.sort(scaled)[-top_k]] = 0
        order = np.argsort(-scaled, kind="stable")
        before = np.cumsum(weights[order]) - weights[order]
        weights[order[before >= top_p * weights.sum()]] = 0
        drawn = []
        for seeds in torch.arange(num_draws, device=device).split(20_000):
            columns = [torch.full_like(seeds, 1, dtype=torch.float32) * value for value in (temperature, top_p, min_p)]
            top_ks = torch.full_like(seeds, top_k)
            ids, _ = dispatch.bound.choose_tokens(
                logits.to(device).expand(len(seeds), -1),
                columns[0],
                top_ks,
                columns[1],
                columns[2],
                seeds,
                torch.full_like(seeds, 5),
            )
            drawn.append(ids.cpu())
        counts = np.bincount(torch.cat(drawn).numpy(), minlength=500)
        possible = weights > 0
        chance = float(stats.chisquare(counts[possible], weights[possible] / weights.sum() * num_draws).pvalue)
        row = Row("choose_tokens", f"{num_draws} draws, {temperature} {top_k} {top_p} {min_p}", extra={"p": chance})
        if counts[~possible].any() or chance < 1e-4:
            row.wrong = f"p = {chance}, {int(counts[~possible].sum())} draws of dropped tokens"
        rows.append(row)
    return rows


SHAPES_OF_PRODUCTS = {  # outputs, inputs
    "Qwen3-0.6B qkv": (4096, 1024),
    "Qwen3-0.6B out": (1024, 2048),
    "Qwen3-0.6B gate_up": (6144, 1024),
    "Qwen3-0.6B down": (1024, 3072),
    "Qwen3-0.6B head": (151936, 1024),
    "Llama-8B qkv": (6144, 4096),
    "Llama-8B out": (4096, 4096),
    "Llama-8B gate_up": (28672, 4096),
    "Llama-8B down": (4096, 14336),
    "Llama-8B head": (128256, 4096),
}


def compare_products(bandwidth: float, rows_of: tuple[int, ...]) -> tuple[list[Row], str]:
    """Weights are cycled through, so that they come from memory as in a model. A tiling enters the table where it is 3%
    faster than the library."""
    from torch.nn import functional

    from octavo.ops.triton.linear import Tiling, candidates, few_rows

    rows: list[Row] = []
    table: list[str] = []
    for name, (outputs, inputs) in SHAPES_OF_PRODUCTS.items():
        copies = max(2, min(CALLS, int(2e8) // (2 * outputs * inputs) + 1))
        weights = [torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) * 0.02 for _ in range(copies)]
        chosen: list[tuple[int, Tiling | None]] = []
        for num_rows in rows_of:
            x = torch.randn(num_rows, inputs, device="cuda", dtype=torch.bfloat16)

            def cycle(function: Callable[[torch.Tensor], Any], weights: list[torch.Tensor] = weights) -> float:
                def call() -> None:
                    for weight in weights:
                        function(weight)

                return replay_time_of_several(call) / len(weights)

            library = cycle(lambda weight, x=x: functional.linear(x, weight))
            best, best_tiling, wrong = float("inf"), None, None
            expected = functional.linear(x.float(), weights[0].float())
            for tiling in candidates(num_rows, outputs, inputs):
                try:
                    found = few_rows(x, weights[0], None, tiling)
                    error = ((found.float() - expected).abs() / (1 + expected.abs())).max().item()
                    if error > 2e-2:
                        wrong = f"{tiling}: error {error}"
                        continue
                    taken = cycle(lambda weight, x=x, tiling=tiling: few_rows(x, weight, None, tiling))
                except Exception as error:  # a tiling that does not fit this device
                    wrong = f"{tiling}: {type(error).__name__}: {error}"[:300]
                    continue
                if taken < best:
                    best, best_tiling = taken, tiling
            row = Row("linear", f"{name} {num_rows} x {inputs} -> {outputs}", round(best, 2), round(library, 2))
            size = 2 * outputs * inputs
            row.floor_microseconds = round(size / bandwidth * 1e6, 2)
            row.gigabytes_per_second = round(size / min(best, library) / 1e3, 1)
            row.wrong = wrong
            row.extra = {"tiling": None if best_tiling is None else asdict(best_tiling)}
            rows.append(row)
            is_faster = best_tiling is not None and best < 0.97 * library
            tiling = best_tiling if is_faster else None
            if chosen and chosen[-1][1] == tiling:
                chosen.pop()  # one line for rows that are computed alike
            chosen.append((num_rows, tiling))
        while chosen and chosen[-1][1] is None:
            chosen.pop()
        if chosen:
            table.append(f"    ({outputs}, {inputs}): {tuple(chosen)},  # {name}")
        del weights
    return rows, "\n".join(table)


def replay_time_of_several(call: Callable[[], Any]) -> float:
    """As replay_time, of a call that is several already."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    return statistics.median(timed(graph.replay) for _ in range(REPLAYS))


# ---- main ------------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="groups, separated by commas: norm, activation, rope, batch, sampling")
    parser.add_argument("--linear", action="store_true", help="products of few rows instead")
    parser.add_argument("--rows", default="1,2,4,8,16,32,64", help="of the products")
    parser.add_argument("--check", action="store_true", help="without a GPU: small shapes, no times")
    parser.add_argument("--bandwidth", type=float, help="bytes per second of the card, for floors")
    parser.add_argument("--budget", type=float, default=300, help="seconds after which no other case begins")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    began = time.perf_counter()
    device = "cpu" if options.check else "cuda"
    name = "cpu" if options.check else torch.cuda.get_device_name()
    known = [value for part, value in BANDWIDTH.items() if part in name]
    bandwidth = None if options.check else options.bandwidth or (known[0] if known else 1e12)
    if options.check:
        from tests.ops import interpreter

        interpreter.prepare()
        np.seterr(all="ignore")
    dispatch.use(("triton",))
    rows: list[Row] = []
    table = ""
    left_out = 0
    torch.manual_seed(0)
    if options.linear:
        assert bandwidth is not None, "--linear needs a GPU"
        rows, table = compare_products(bandwidth, tuple(map(int, options.rows.split(","))))
    else:
        cases = Cases(device, options.check)
        for group in (options.only or "norm,activation,rope,batch,sampling").split(","):
            for case in getattr(cases, group)():
                if time.perf_counter() - began > options.budget:
                    left_out += 1
                    continue
                try:
                    row = measure(case, bandwidth)
                except Exception as error:
                    row = Row(case.op, case.shape, wrong=f"{type(error).__name__}: {error}"[:500])
                rows.append(row)
                print(describe(row), file=sys.stderr, flush=True)
            if group == "sampling" and not options.check:
                rows += check_draws(device)
    found = {
        "device": name,
        "torch": torch.__version__,
        "triton": __import__("triton").__version__,
        "bandwidth": bandwidth,
        "seconds": round(time.perf_counter() - began, 1),
        "left_out": left_out,
        "wrong": [f"{row.op} {row.shape}: {row.wrong}" for row in rows if row.wrong],
        "rows": [asdict(row) for row in rows],
    }
    if options.linear:
        print("\n".join(describe(row) for row in rows), file=sys.stderr)
        print(f"FASTER = {{\n{table}\n}}", file=sys.stderr)
        found["table"] = table
    text = json.dumps(found, indent=1)
    if options.output:
        options.output.write_text(text + "\n")
    else:
        print(text)
    for line in found["wrong"]:
        print(f"WRONG {line}", file=sys.stderr)
    return 1 if found["wrong"] else 0


def describe(row: Row) -> str:
    times = f"{row.microseconds} us, floor {row.floor_microseconds}, torch {row.torch_microseconds}"
    return f"{row.op:18} {row.shape:60} {times}{'  WRONG: ' + row.wrong if row.wrong else ''}"


if __name__ == "__main__":
    sys.exit(main())
