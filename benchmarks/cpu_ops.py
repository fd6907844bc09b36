#!/usr/bin/env python
"""What of a step is neither product nor attention, on a CPU: octavo's kernels, torch's operators beside, and floors.

    benchmarks/cpu_ops.py [--tokens 1,64,1024] [--rows 1,64,256] [--vocab 49152] [--dtype bfloat16] [--isa avx512]
                          [--threads 2] [--only rms_norm,choose_tokens] [--taped] [--seconds 0.2] [--json FILE]

A line is the least time of many calls, in us, as Python makes them or (--taped) as a recorded step does. The two take
turns, since other programs on the machine slow both down. The floor is the time to read and write each byte once at
--bandwidth; what a cache holds may pass in less.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from octavo import _cpu
from octavo.ops import dispatch
from octavo.ops.cpu.memory import Arena
from octavo.ops.cpu.tape import Tape
from octavo.platforms.cpu import read_processor, usable_cpus

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM = 576, 1536, 9, 3, 64  # SmolLM2-135M
BLOCK_SIZE, MAX_LEN = 16, 2048

Case = tuple[str, str, tuple[object, ...], int]  # op, what of it, arguments, bytes


def model_cases(tokens: int, dtype: torch.dtype) -> Iterator[Case]:
    width = dtype.itemsize
    x, residual = torch.randn(2, tokens, HIDDEN).to(dtype).unbind()
    weight = torch.randn(HIDDEN).to(dtype)
    size = f"{tokens} x {HIDDEN}"
    yield "rms_norm", size, (x, weight, 1e-5), 2 * tokens * HIDDEN * width
    yield "add_rms_norm", size, (x, residual, weight, 1e-5), 4 * tokens * HIDDEN * width
    both = torch.randn(tokens, 2 * INNER).to(dtype)
    for op in ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"):
        yield op, f"{tokens} x {INNER}", (both,), 3 * tokens * INNER * width
    heads = HEADS + 2 * KV_HEADS
    qkv = torch.randn(tokens, heads * HEAD_DIM).to(dtype)
    q, k, v = (
        part.unflatten(1, (-1, HEAD_DIM))
        for part in qkv.split([HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM], 1)
    )
    blocks = -(-tokens // BLOCK_SIZE) + 1
    cache = torch.zeros(blocks, 2, BLOCK_SIZE, KV_HEADS, HEAD_DIM, dtype=dtype)
    positions, slots = torch.arange(tokens), torch.arange(tokens) + BLOCK_SIZE
    cos_sin, norm = torch.randn(MAX_LEN, HEAD_DIM), torch.randn(HEAD_DIM).to(dtype)
    size, num_bytes = f"{tokens} x {heads} x {HEAD_DIM}", 2 * tokens * heads * HEAD_DIM * width
    yield "write_kv", size, (k, v, cache, slots), 4 * tokens * KV_HEADS * HEAD_DIM * width
    yield "rope_and_write", size, (q, k, v, positions, cos_sin, cache, slots), num_bytes
    yield "rope_and_write", size + " normed", (q, k, v, positions, cos_sin, cache, slots, norm, norm, 1e-6), num_bytes
    rows = torch.arange(tokens) if tokens <= 64 else torch.zeros(tokens, dtype=torch.int64)
    yield "mark_bad_rows", f"{tokens} x {HIDDEN}", (x, rows, min(tokens, 64)), tokens * HIDDEN * width


def batch_cases(rows: int) -> Iterator[Case]:
    table = torch.ones(256, MAX_LEN // BLOCK_SIZE, dtype=torch.int32)
    tokens = torch.zeros(256, MAX_LEN, dtype=torch.int32)
    computed = torch.full((256,), 512)
    ids, positions, row_of_token, slots = (torch.zeros(rows, dtype=torch.int64) for _ in range(4))
    start, lens = torch.zeros(rows + 1, dtype=torch.int32), torch.zeros(rows, dtype=torch.int32)
    gathered = torch.zeros(rows, MAX_LEN // BLOCK_SIZE, dtype=torch.int32)
    which, counts = torch.arange(rows), torch.ones(rows, dtype=torch.int64)
    args = which, counts, tokens, computed, [table], BLOCK_SIZE, ids, positions, row_of_token, start, lens, [slots]
    yield "build_batch", f"{rows} rows", (*args, [gathered]), rows * (512 // BLOCK_SIZE * 8 + 64)
    yield "append_sampled", f"{rows} rows", (which, which, tokens, torch.zeros(256, dtype=torch.int64)), 28 * rows


def sampling_cases(rows: int, vocab: int, dtype: torch.dtype) -> Iterator[Case]:
    logits = (torch.randn(rows, vocab) * 2).to(dtype)
    size, num_bytes = f"{rows} x {vocab}", rows * vocab * dtype.itemsize
    counter = torch.arange(rows)
    kinds = {
        "greedy": (0.0, 0, 1.0, 0.0),
        "random": (0.8, 0, 1.0, 0.0),
        "top_k 50": (0.8, 50, 1.0, 0.0),
        "top_p 0.9": (0.8, 0, 0.9, 0.0),
        "top_p 0.9, peaked": (0.2, 0, 0.9, 0.0),
        "top_k, top_p, min_p": (0.8, 50, 0.9, 0.05),
    }
    yield "argmax", size, (logits,), num_bytes
    for name, kind in kinds.items():
        columns = [torch.full((rows,), value) for value in kind]
        yield "choose_tokens", f"{size} {name}", (logits, *columns, counter, counter), num_bytes
    wide, num_bytes = logits.float(), rows * vocab * 4
    uniform = torch.rand(rows, dtype=torch.float64)
    yield "sample", size, (wide, uniform), num_bytes
    columns = [torch.full((rows,), value) for value in (50, 0.9, 0.0)]
    yield "mask_truncated", f"{size} top_k, top_p", (wide, *columns), 2 * num_bytes
    yield "gather_logprobs", f"{size}, 5", (wide, counter, 5), num_bytes
    yield "log_mass", size, (wide,), num_bytes
    yield "token_ranks", size, (wide, counter[:, None]), num_bytes
    bits = torch.zeros(rows, -(-vocab // 32), dtype=torch.int32)
    bits[:, ::97] = 5
    yield "apply_bitmask", size, (wide.clone(), counter, bits), num_bytes + bits.nbytes
    mask, counts = torch.zeros(rows, vocab, dtype=torch.bool), torch.zeros(rows, vocab, dtype=torch.int32)
    mask[:, 100:400], counts[:, 1000:1100] = True, 2
    ones = torch.ones(rows)
    yield "apply_penalties", size, (wide, mask, counts, ones * 1.1, ones, ones), rows * vocab * 13


def best_of(runs: list[Callable[[], object]], seconds: float) -> list[float]:
    """Least seconds of each, taking turns; several calls at once where one is shorter than the clock is exact."""
    repeats = []
    for run in runs:
        started = time.perf_counter()
        run()
        repeats.append(max(1, int(20e-6 / (time.perf_counter() - started))))
    least, rounds, until = [float("inf")] * len(runs), 0, time.perf_counter() + seconds
    while rounds < 5 or time.perf_counter() < until:
        for place, (run, repeat) in enumerate(zip(runs, repeats, strict=True)):
            started = time.perf_counter()
            for _ in range(repeat):
                run()
            least[place] = min(least[place], (time.perf_counter() - started) / repeat)
        rounds += 1
        if rounds >= 5 and time.perf_counter() > until + 2:
            break
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1,64,1024")
    parser.add_argument("--rows", default="1,64,256")
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--isa", default="")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--taped", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each line")
    parser.add_argument("--bandwidth", type=float, default=28.5, help="GB/s of the memory")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    _cpu.set_isa(args.isa)
    cpus = usable_cpus(read_processor(Path("/")))[: args.threads]
    _cpu.start_threads(list(cpus) if len(cpus) == args.threads else [-1] * args.threads)
    torch.set_num_threads(args.threads)
    dtype, only = getattr(torch, args.dtype), set(filter(None, args.only.split(",")))
    cases = [case for tokens in map(int, args.tokens.split(",")) for case in model_cases(tokens, dtype)]
    rows = list(map(int, args.rows.split(",")))
    cases += [case for count in rows for case in batch_cases(count)]
    print(f"{_cpu.isa()}, {args.threads} threads, {args.dtype}{', taped' if args.taped else ''}; us")
    print(f"{'op':18}{'size':36}{'ours':>10}{'torch':>10}{'ratio':>8}{'floor':>10}")
    lines = []

    def measure(case: Case) -> None:
        op, size, arguments, num_bytes = case
        ours, theirs = (dispatch.implementation_of(op, name) for name in ("cpu", "torch"))
        if op == "build_batch":  # what it advances is put back
            computed = arguments[3]
            assert isinstance(computed, torch.Tensor)
            reset = computed.fill_
        elif op == "append_sampled":
            length = arguments[3]
            assert isinstance(length, torch.Tensor)
            reset = length.fill_
        else:
            reset = None

        def run(function: Callable[..., object]) -> Callable[[], object]:
            if reset is None:
                return lambda: function(*arguments)
            return lambda: (reset(512), function(*arguments))

        mine = run(ours)
        if args.taped and reset is None:
            tape = Tape(Arena())
            kept = tape.record(mine)
            assert tape.foreign is None, tape.foreign
            mine = lambda: (tape.run(), kept)  # noqa: E731
        own, torchs = best_of([mine, run(theirs)], args.seconds)
        floor = num_bytes / args.bandwidth / 1e9
        print(
            f"{op:18}{size:36}{own * 1e6:10.1f}{torchs * 1e6:10.1f}{torchs / own:8.1f}{floor * 1e6:10.2f}", flush=True
        )
        lines.append({"op": op, "size": size, "ours": own, "torch": torchs, "floor": floor})

    with torch.inference_mode():
        for case in cases:
            if not only or case[0] in only:
                measure(case)
        for count in rows:
            for case in sampling_cases(count, args.vocab, dtype):
                if not only or case[0] in only:
                    measure(case)
    if args.json:
        args.json.write_text(json.dumps({"isa": _cpu.isa(), "threads": args.threads, "lines": lines}, indent=1))


if __name__ == "__main__":
    main()
