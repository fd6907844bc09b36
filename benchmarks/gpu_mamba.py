#!/usr/bin/env python3
"""The recurrent kernels on one GPU, at the sizes of a 1.3B model's layer: each checked against the torch implementation
in float32, then timed by replay of captured graphs, beside the floor of its bytes and operations. JSON to stdout or
--output.

    python benchmarks/gpu_mamba.py --output mamba.json
    python benchmarks/gpu_mamba.py --tune       other tiles than the chosen ones, for the cases where they matter
    TRITON_INTERPRET=1 python benchmarks/gpu_mamba.py --check       no GPU: small sizes, no times

States lie as an engine's do, those of several layers side by side in a block, and a graph goes over the layers: nothing
is found in the L2 cache that would not be. Inputs are read again by each layer, as if they had just been written.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from octavo.ops import dispatch
from octavo.ops.state_rows import StateRows
from octavo.ops.triton import ssm_chunks, ssm_dual

LAYER_BYTES = 500 << 20  # of the states that a graph goes over, several times the L2 cache
MAX_LAYERS = 48
FATAL = getattr(torch, "AcceleratorError", ())  # after these the device is of no more use


@dataclass(frozen=True)
class Sizes:
    heads: int = 64
    head_dim: int = 64
    state: int = 128
    groups: int = 1
    taps: int = 4
    first_channels: int = 4096  # of Mamba-1, as the next
    first_state: int = 16

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def convolved(self) -> int:
        return self.inner + 2 * self.groups * self.state


@dataclass(frozen=True)
class Case:
    """`lengths`: tokens of each row; rows of several are new ones."""

    name: str
    lengths: tuple[int, ...]
    pad_rows: int = 0
    pad_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)


CASES = (
    Case("decode 1", (1,)),
    Case("decode 64", (1,) * 64),
    Case("decode 256", (1,) * 256),
    Case("verify 64 x 4", (4,) * 64),
    Case("prefill 1 x 8192", (8192,)),
    Case("prefill 16 x 1024", (1024,) * 16),
    Case("prefill 64 x 100", (100,) * 64),
    Case("mixed 128 + 2048", (1,) * 128 + (2048,)),
    Case("the same, padded", (1,) * 128 + (2048,), 256, 2304),
)
SMALL_CASES = (Case("decode 2", (1,) * 2), Case("mixed 2 + 70", (1, 1, 70)), Case("padded", (1, 9), 4, 16))


@dataclass
class Row:
    op: str
    case: str
    state_dtype: str
    variant: str = "chosen"
    microseconds: float | None = None
    floor_microseconds: float | None = None
    terabytes_per_second: float | None = None
    teraflops: float | None = None
    error: float | None = None  # root mean square, of y, over that of the exact one
    state_error: float | None = None
    rounding: float | None = None  # what the same is where only the exact result is rounded
    first_call_seconds: float | None = None
    wrong: str | None = None


@dataclass
class Problem:
    """An op's tensors. `run(implementation, inputs, layer)` computes in place of the layer's states."""

    inputs: list[Tensor]
    layers: list[Tensor]
    rows: StateRows
    num_bytes: int
    operations: float
    run: Callable[[str, list[Tensor], Tensor, StateRows], Tensor]
    real: int = field(default=0)  # tokens that are no padding


def states_of(rows: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """[rows + 1, *shape] of each layer."""
    values = -(-math.prod(shape) * dtype.itemsize // 64) * 64 // dtype.itemsize
    layers = max(1, min(MAX_LAYERS, LAYER_BYTES // (values * dtype.itemsize * rows)))
    if device.type != "cuda":
        layers = 2
    pages = torch.empty(rows + 1, layers, values, dtype=dtype, device=device)
    for page in pages:
        page.normal_(std=0.5)
    return [pages[:, layer, : math.prod(shape)].unflatten(1, shape) for layer in range(layers)]


def rows_of(case: Case, device: torch.device) -> StateRows:
    lengths = [*case.lengths, *[0] * (max(case.pad_rows, len(case.lengths)) - len(case.lengths))]
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    blocks = torch.randperm(len(case.lengths), generator=torch.Generator().manual_seed(1)) + 1
    blocks = torch.cat((blocks, torch.zeros(len(lengths) - len(blocks), dtype=torch.int64)))
    fresh = torch.tensor([length > 4 for length in lengths])
    return StateRows(blocks.to(device), fresh.to(device), starts.to(device), lengths)


def problems(case: Case, sizes: Sizes, dtype: torch.dtype, state_dtype: torch.dtype, device: Any) -> Iterator[Any]:
    """(op, problem) of every op."""
    tokens, num_rows = max(case.num_tokens, case.pad_tokens), len(case.lengths)
    rows, real = rows_of(case, device), case.num_tokens

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, device=device) * scale

    inner, convolved, state = sizes.inner, sizes.convolved, sizes.groups * sizes.state
    gate_x_dt = normal(tokens, inner + convolved + sizes.heads).to(dtype)
    _, x, dt = gate_x_dt.split((inner, convolved, sizes.heads), -1)
    weight, bias = normal(convolved, sizes.taps, scale=0.5).to(dtype), normal(convolved).to(dtype)
    width = dtype.itemsize
    num_bytes = 2 * real * convolved * width + 2 * num_rows * convolved * (sizes.taps - 1) * width

    def conv(name: str, inputs: list[Tensor], states: Tensor, rows: StateRows) -> Tensor:
        taps, offset = (part.to(inputs[0].dtype) for part in (weight, bias))
        return dispatch.implementation_of("causal_conv1d", name)(inputs[0], taps, offset, states, rows)[0]

    layers = states_of(num_rows, (convolved, sizes.taps - 1), dtype, device)
    yield "causal_conv1d", Problem([x], layers, rows, num_bytes, 2.0 * real * convolved * sizes.taps, conv, real)

    mixed = normal(tokens, convolved).to(dtype)
    x, B, C = mixed.split((inner, state, state), -1)
    x = x.unflatten(-1, (sizes.heads, sizes.head_dim))
    B, C = (part.unflatten(-1, (sizes.groups, sizes.state)) for part in (B, C))
    A = -torch.exp(torch.rand(sizes.heads, device=device) * 3)
    D, dt_bias = normal(sizes.heads), torch.rand(sizes.heads, device=device) * 5 - 7
    values = inner * sizes.state
    num_bytes = real * (2 * inner + 2 * state + sizes.heads) * width + 2 * num_rows * values * state_dtype.itemsize
    # Of chunks: what is inside, on and below the diagonal, and the state's part in the output and the other way round.
    size = ssm_chunks.chunk_config(dtype, 227 << 10).size
    inside = sum(
        (min(size, length - first) ** 2) * (inner + state)
        for length in case.lengths
        for first in range(0, length, size)
    )
    operations = 4.0 * real * values + (float(inside) if max(case.lengths) > 1 else 0.0)

    def dual(name: str, inputs: list[Tensor], states: Tensor, rows: StateRows) -> Tensor:
        x, dt, B, C = inputs
        limit = (0.0, math.inf)
        return dispatch.implementation_of("ssd", name)(x, dt, dt_bias, limit, A, B, C, D, states, rows)[0]

    layers = states_of(num_rows, (sizes.heads, sizes.head_dim, sizes.state), state_dtype, device)
    yield "ssd", Problem([x, dt, B, C], layers, rows, num_bytes, operations, dual, real)

    channels, first_state = sizes.first_channels, sizes.first_state
    x, gate = normal(tokens, 2 * channels).to(dtype).split(channels, -1)
    dt = normal(tokens, channels).to(dtype) - 3
    B, C = normal(tokens, 128 + 2 * first_state).to(dtype)[:, 128:].split(first_state, -1)
    A1, D1 = -torch.exp(torch.rand(channels, first_state, device=device) * 3), normal(channels)
    values = channels * first_state
    num_bytes = real * (4 * channels + 2 * first_state) * width + 2 * num_rows * values * state_dtype.itemsize

    def scan(name: str, inputs: list[Tensor], states: Tensor, rows: StateRows) -> Tensor:
        x, dt, B, C, gate = inputs
        return dispatch.implementation_of("selective_scan", name)(x, dt, A1, B, C, D1, gate, states, rows)[0]

    layers = states_of(num_rows, (channels, first_state), state_dtype, device)
    operations = 6.0 * real * values
    yield "selective_scan", Problem([x, dt, B, C, gate], layers, rows, num_bytes, operations, scan, real)


# ---- right? ----------------------------------------------------------------------------------------------------------


def root_mean_square(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


def check(problem: Problem, row: Row) -> None:
    """Against the specification in float32, on the same inputs and states; without its padding."""
    states, rows = problem.layers[0], problem.rows
    count = sum(length > 0 for length in rows.query_lens)
    fresh = None if rows.fresh is None else rows.fresh[:count]
    plain = StateRows(rows.blocks[:count], fresh, rows.query_start[: count + 1], rows.query_lens[:count])
    exact_states = states.float().clone()
    inputs = [part[: problem.real].float() for part in problem.inputs]
    exact = problem.run("torch", inputs, exact_states, plain)
    began = time.perf_counter()
    found = problem.run("triton", problem.inputs, states, rows)[: problem.real]
    if states.is_cuda:
        torch.cuda.synchronize()
    row.first_call_seconds = round(time.perf_counter() - began, 3)
    wide = found.dtype == torch.float32
    row.error = root_mean_square(found.float() - exact) / root_mean_square(exact)
    row.rounding = root_mean_square(exact.to(found.dtype).float() - exact) / root_mean_square(exact)
    row.state_error = root_mean_square(states[1:].float() - exact_states[1:]) / root_mean_square(exact_states[1:])
    roundings = 4 if found.dtype == torch.float16 else 2  # its products go through tf32, which has as few digits
    limit = 1e-5 if wide else max(roundings * row.rounding, 1e-5)
    state_limit = 1e-5 if wide and states.dtype == torch.float32 else 6e-3
    if not (row.error < limit and row.state_error < state_limit):
        row.wrong = f"error {row.error:.2e} (limit {limit:.2e}), of states {row.state_error:.2e} ({state_limit:.2e})"


# ---- fast? -----------------------------------------------------------------------------------------------------------


def microseconds(launch: Callable[[], Any], parts: int, budget: float = 0.05) -> float:
    """Of one of the `parts` that `launch` submits: the best of three times `budget` seconds of replays."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        launch()
    torch.cuda.current_stream().wait_stream(side)
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
        taken = begin.elapsed_time(end) * 1e3 / repeats
        if attempt:
            best = min(best, taken)
        else:
            repeats = max(1, int(budget * 1e6 / taken))
    return best / parts


def measure(problem: Problem, row: Row, args: argparse.Namespace) -> None:
    """A graph of one call for each layer. Lists of the rows are made once, as a step does."""

    def launch() -> None:
        step = replace(problem.rows, derived={})
        for layer in problem.layers:
            problem.run("triton", problem.inputs, layer, step)

    taken = microseconds(launch, len(problem.layers))
    row.microseconds = round(taken, 2)
    floor = max(problem.num_bytes / args.bandwidth, problem.operations / args.matrix_rate)
    row.floor_microseconds = round(floor * 1e6, 2)
    row.terabytes_per_second = round(problem.num_bytes / taken / 1e6, 3)
    row.teraflops = round(problem.operations / taken / 1e6, 2)


# ---- other tiles -----------------------------------------------------------------------------------------------------


def chunk_variants() -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    chosen, shared_heads = ssm_dual.chunk_config, ssm_chunks.SHARED_HEADS
    best = chosen(torch.bfloat16, 227 << 10)

    def put(config: ssm_chunks.ChunkConfig, shared: int) -> None:
        ssm_dual.chunk_config = lambda dtype, shared_bytes: config  # type: ignore[assignment]
        ssm_chunks.SHARED_HEADS = shared

    def back() -> None:
        ssm_dual.chunk_config, ssm_chunks.SHARED_HEADS = chosen, shared_heads

    for change in (
        {"num_stages": 1},
        {"num_stages": 3},
        {"keys": best.size},
        {"size": 64, "keys": 64, "scan_warps": 4},
        {"size": 64, "keys": 32, "scan_warps": 4},
        {"size": 64, "keys": 64, "scan_warps": 4, "num_stages": 1},
        {"block_p": 32},
        {"block_n": 64},
        {"state_warps": 8},
    ):
        config = replace(best, **change)
        yield str(change), lambda config=config: put(config, shared_heads), back
    yield "one head a program", lambda: put(best, 1 << 60), back
    yield "several heads a program", lambda: put(best, 0), back


def short_variants() -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    chosen = ssm_dual.TILE, ssm_dual.PROGRAMS

    def put(tile: int, programs: int) -> None:
        ssm_dual.TILE, ssm_dual.PROGRAMS = tile, programs

    for tile, programs in ((1024, 512), (2048, 512), (8192, 512), (4096, 128), (4096, 256), (4096, 1024)):
        yield f"tile {tile}, {programs} programs", lambda t=tile, p=programs: put(t, p), lambda: put(*chosen)


def tune(args: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    for case in CASES:
        if "padded" in case.name:
            continue
        for op, problem in problems(case, Sizes(), torch.bfloat16, torch.float32, device):
            if op != "ssd":
                continue
            for name, put, back in chunk_variants() if max(case.lengths) > 4 else short_variants():
                row = Row(op, case.name, "float32", name)
                put()
                try:
                    check(problem, row)
                    measure(problem, row, args)
                except FATAL:
                    raise
                except Exception as error:  # tiles that do not fit this device
                    row.wrong = f"{type(error).__name__}: {error}"[:300]
                finally:
                    back()
                    problem.rows.derived.clear()
                yield row


# ---- main ------------------------------------------------------------------------------------------------------------


def run_all(args: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    is_timed = device.type == "cuda"
    sizes = Sizes() if is_timed else Sizes(4, 16, 32, 2, 4, 48, 16)
    wide = (
        (Case("float32: 1 + 3 + 300 + 40", (1, 3, 300, 40)), torch.float32, torch.float32),
        (Case("float32: decode 5", (1,) * 5), torch.float32, torch.float32),
        (Case("float16: 1 + 3 + 300", (1, 3, 300)), torch.float16, torch.float32),
    )
    plan = [(case, torch.bfloat16, dtype) for dtype in (torch.float32, torch.bfloat16) for case in CASES]
    if not is_timed:
        plan = [(case, torch.bfloat16, torch.float32) for case in SMALL_CASES]
        wide = wide[1:2]
    for case, dtype, state_dtype in [*wide, *plan]:
        for op, problem in problems(case, sizes, dtype, state_dtype, device):
            row = Row(op, case.name, str(state_dtype).removeprefix("torch."))
            if op == "causal_conv1d" and dtype == state_dtype == torch.bfloat16:
                continue  # its states are of the inputs' dtype, and were had before
            try:
                check(problem, row)
                if is_timed:
                    measure(problem, row, args)
            except FATAL:
                raise
            except Exception as error:
                traceback.print_exc()
                row.wrong = f"{type(error).__name__}: {error}"[:500]
            yield row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="without a GPU: small sizes, no times")
    parser.add_argument("--tune", action="store_true", help="other tiles of the state-space dual")
    parser.add_argument("--bandwidth", type=float, default=4.3e12, help="bytes a second, for floors")
    parser.add_argument("--matrix-rate", type=float, default=790e12, help="operations a second")
    parser.add_argument("--budget", type=float, default=400, help="seconds after which no other case begins")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    began = time.perf_counter()
    device = torch.device("cpu" if args.check else "cuda")
    if args.check:
        import numpy as np

        from tests.ops import interpreter

        interpreter.prepare()
        np.seterr(all="ignore")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    rows: list[Row] = []
    is_complete = True
    with torch.inference_mode():
        for row in tune(args, device) if args.tune else run_all(args, device):
            rows.append(row)
            print(describe(row), file=sys.stderr, flush=True)
            if time.perf_counter() - began > args.budget:
                is_complete = False
                break
    found = {
        "device": "cpu" if args.check else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": __import__("triton").__version__,
        "seconds": round(time.perf_counter() - began, 1),
        "is_complete": is_complete,
        "wrong": [f"{row.op} {row.case} {row.variant}: {row.wrong}" for row in rows if row.wrong],
        "rows": [asdict(row) for row in rows],
    }
    text = json.dumps(found, indent=1)
    if args.output is None:
        print(text)
    else:
        args.output.write_text(text + "\n")
    for line in found["wrong"]:
        print(f"WRONG {line}", file=sys.stderr)
    return 1 if found["wrong"] and not args.tune else 0


def describe(row: Row) -> str:
    times = (
        f"{row.microseconds} us, floor {row.floor_microseconds}: {row.terabytes_per_second} TB/s, {row.teraflops} TF"
    )
    errors = f"error {row.error or 0:.1e} (rounding {row.rounding or 0:.1e}), states {row.state_error or 0:.1e}"
    what = f"{row.op:15} {row.case:26} {row.state_dtype:9} {row.variant:30}"
    return f"{what} {times}; {errors}{'  WRONG' if row.wrong else ''}"


if __name__ == "__main__":
    sys.exit(main())
