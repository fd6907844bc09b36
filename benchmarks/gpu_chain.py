#!/usr/bin/env python3
"""Decoder layers of a model on one CUDA GPU, as a graph runs them: kernel after kernel, where each begins while the
one before ends, so that times of kernels alone do not add up. For rows that decode: microseconds a layer, its floor,
and what other tilings of a product or other configurations of attention would make of it.

    python benchmarks/gpu_chain.py --shape llama-8b --rows 8 --context 16128
    python benchmarks/gpu_chain.py --shape llama-8b --rows 8 --context 16128 --tilings --attention

The last prints lines for FASTER in octavo/ops/triton/linear.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_attention import DEVICE, DTYPE, PAGE, microseconds, ours
from octavo.attention.backend import AttentionCall, GroupStep, StepContext
from octavo.attention.triton_paged import TritonPaged
from octavo.cli.bench.workloads import SHAPES
from octavo.ops import dispatch
from octavo.ops.ahead import Rehearsal
from octavo.ops.triton.attention_work import DecodeConfig, decode_config, device_limits
from octavo.ops.triton.linear import FASTER, Tiling, tiling_of

LAYERS = 8


class Layers:
    """Weights, caches and a step, all random."""

    def __init__(self, shape: dict[str, int], lengths: list[int]) -> None:
        hidden, self.heads, self.kv_heads = (shape[key] for key in ("hidden_size", *_HEADS))
        self.head = shape.get("head_dim", hidden // self.heads)
        self.products = {
            "qkv": ((self.heads + 2 * self.kv_heads) * self.head, hidden),
            "out": (hidden, self.heads * self.head),
            "gate_up": (2 * shape["intermediate_size"], hidden),
            "down": (hidden, shape["intermediate_size"]),
        }
        self.weights = [
            {name: torch.randn(*size, device=DEVICE, dtype=DTYPE) * 0.02 for name, size in self.products.items()}
            for _ in range(LAYERS)
        ]
        self.norm = torch.ones(hidden, device=DEVICE, dtype=DTYPE)
        self.head_norm = (
            torch.ones(self.head, device=DEVICE, dtype=DTYPE) if "qwen3" in shape["architectures"][0].lower() else None
        )
        self.cos_sin = torch.rand(max(lengths), self.head, device=DEVICE)
        self.x = torch.randn(len(lengths), hidden, device=DEVICE, dtype=DTYPE)
        widths = [-(-length // PAGE) for length in lengths]
        places = 2 * PAGE * self.kv_heads * self.head
        buffer = torch.empty(1 + sum(widths), LAYERS * places, device=DEVICE, dtype=DTYPE).normal_()
        self.caches = [page.unflatten(1, (2, PAGE, self.kv_heads, self.head)) for page in buffer.split(places, 1)]
        blocks = (torch.randperm(sum(widths)) + 1).to(DEVICE, torch.int32).split(widths)
        table = torch.nn.utils.rnn.pad_sequence(list(blocks), batch_first=True).contiguous()
        seq_lens = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
        positions = seq_lens.long() - 1
        slots = table.long().gather(1, positions[:, None] // PAGE)[:, 0] * PAGE + positions % PAGE
        starts = torch.arange(len(lengths) + 1, dtype=torch.int32, device=DEVICE)
        group = GroupStep(table, slots)
        self.step = StepContext(positions, starts, seq_lens, [1] * len(lengths), lengths, [group], positions)
        self.call = AttentionCall(self.head**-0.5, self.heads, self.kv_heads, self.head)
        self.weight_bytes = sum(2 * outputs * inputs for outputs, inputs in self.products.values())
        self.cache_bytes = sum(lengths) * places // PAGE * 2

    def forward(self, backend: TritonPaged, with_attention: bool = True) -> torch.Tensor:
        ops, head = dispatch.bound, self.head
        hidden = residual = self.x
        self.step.groups[0].plan = backend.plan(self.step, 0)
        for weights, cache in zip(self.weights, self.caches, strict=True):
            hidden, residual = ops.add_rms_norm(hidden, residual, self.norm, 1e-5)
            parts = (
                ops.linear(hidden, weights["qkv"])
                .unflatten(1, (-1, head))
                .split((self.heads, self.kv_heads, self.kv_heads), 1)
            )
            norms = (self.head_norm, self.head_norm, 1e-5)
            q = ops.rope_and_write(
                *parts, self.step.positions, self.cos_sin, cache, self.step.groups[0].slots, *norms, 0.0
            )
            if with_attention:
                q = backend.forward(q, cache, self.step, 0, self.call)
            hidden, residual = ops.add_rms_norm(ops.linear(q.flatten(1), weights["out"]), residual, self.norm, 1e-5)
            hidden = ops.linear(ops.silu_and_mul(ops.linear(hidden, weights["gate_up"])), weights["down"])
        return hidden

    def time(self, backend: TritonPaged | None = None, with_attention: bool = True) -> float:
        backend = backend or ours()
        return microseconds(lambda: self.forward(backend, with_attention), LAYERS)


_HEADS = ("num_attention_heads", "num_key_value_heads")


def tilings(num_outputs: int, num_inputs: int) -> Iterator[Tiling]:
    for outputs, inner, warps, stages, held in (
        (64, 128, 4, 4, 0),
        (64, 128, 4, 5, 0),
        (64, 128, 4, 3, 256),
        (64, 128, 4, 4, 256),
        (64, 128, 4, 2, 512),
        (64, 256, 4, 3, 0),
        (32, 256, 4, 4, 0),
        (32, 128, 4, 5, 0),
        (128, 128, 8, 3, 0),
        (128, 128, 4, 3, 0),
    ):
        programs = -(-num_outputs // outputs)
        for split in (1, 2, 4, 8):
            part, rest = divmod(num_inputs, split)
            if 90 <= programs * split <= (1800 if split == 1 else 700) and not (rest or part % inner or held > part):
                yield Tiling(False, outputs, inner, split, warps, stages, held)


def attentions(head: int) -> Iterator[DecodeConfig]:
    limits = device_limits(DEVICE)
    whole = decode_config(head, DTYPE, limits)
    yield whole
    yield replace(whole, num_stages=2, fill=3 * limits.processors)
    for keys, warps, stages, fill in (
        (128, 8, 3, 1),
        (128, 4, 3, 1),
        (64, 8, 3, 2),
        (64, 4, 3, 2),
        (64, 4, 2, 3),
        (32, 4, 6, 2),
    ):
        yield replace(
            whole, stream=True, block_n=keys, num_warps=warps, num_stages=stages, fill=fill * limits.processors
        )


def compile_all(calls: list[Callable[[], object]]) -> None:
    """At once, on all processors."""
    with Rehearsal(torch.device("cuda", torch.cuda.current_device())) as rehearsal:
        for call in calls:
            call()
    rehearsal.wait()


def try_tilings(layers: Layers, rows: int, show: Callable[..., None]) -> None:
    """One product after the other keeps what made the layer fastest."""
    best = layers.time()
    for name, size in layers.products.items():
        kept = FASTER.get(size, ())
        chosen = tiling_of(rows, *size)
        found = []
        choices = list(tilings(*size))

        def use(tiling: Tiling, size: tuple[int, int] = size) -> None:
            FASTER[size] = ((64, tiling),)

        def forward(tiling: Tiling, use: Callable[[Tiling], None] = use) -> None:
            use(tiling)
            layers.forward(ours())

        compile_all([lambda tiling=tiling, forward=forward: forward(tiling) for tiling in choices])
        for tiling in choices:
            use(tiling)
            found.append((layers.time(), tiling))
        FASTER[size] = kept
        found.sort(key=lambda pair: pair[0])
        if found and found[0][0] < best:
            best, chosen = found[0]
            use(found[0][1])
        for us, tiling in found[:3]:
            show(f"{name}: {tuple(vars(tiling).values())}", us)
        show(f"{size}: (({rows}, {chosen}),),  # {name}", best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[name for name, shape in SHAPES.items() if "intermediate_size" in shape])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--context", type=int, default=16_128, help="tokens of each row")
    parser.add_argument("--uneven", action="store_true", help="rows of 0.4 to 1.6 times that")
    parser.add_argument("--tilings", action="store_true")
    parser.add_argument("--attention", action="store_true")
    parser.add_argument("--bandwidth", type=float, default=4.3e12, help="bytes a second, for the floor")
    given = parser.parse_args()
    torch.manual_seed(0)
    dispatch.use(("triton", "torch"))
    steps = max(1, given.rows - 1)
    lengths = [
        int(given.context * (0.4 + 1.2 * row / steps)) if given.uneven else given.context for row in range(given.rows)
    ]

    def show(what: str, *us: float) -> None:
        print(
            f"{given.shape} {given.rows} x {given.context}  {what:80} {'  '.join(f'{one:.1f}' for one in us)}",
            flush=True,
        )

    with torch.inference_mode():
        layers = Layers(SHAPES[given.shape or "llama-8b"], lengths)
        compile_all([lambda: layers.forward(ours())])
        show("a layer; without attention", layers.time(), layers.time(with_attention=False))
        rate = given.bandwidth / 1e6
        show("floor", (layers.weight_bytes + layers.cache_bytes) / rate, layers.weight_bytes / rate)
        if given.tilings:
            try_tilings(layers, given.rows, show)
        if given.attention:
            choices = list(attentions(layers.head))
            compile_all([lambda config=config: layers.forward(ours(config)) for config in choices])
            for us, config in sorted(((layers.time(ours(config)), config) for config in choices), key=lambda x: x[0]):
                show(f"attention: {tuple(vars(config).values())}", us)


if __name__ == "__main__":
    main()
