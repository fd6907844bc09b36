#!/usr/bin/env python3
"""Chats that go on: 20 conversations of 10 turns with one system prompt, dealt out in turn, on a pure Mamba-2, a hybrid
(Bamba) and an attention model (Llama) of about the same size with random weights. For each: the share of prompt tokens
that came from the cache, and the time to the first token of turn 10 with and without it; then the share as the cache
shrinks. JSON to stdout or --output, a plot to --plot.

    benchmarks/multiturn.py [--quick] [--output FILE] [--plot docs/images/multiturn.svg]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from octavo.config.options import Options
from octavo.core.messages import Submit
from octavo.core.params import SamplingParams
from octavo.engine.assemble import build_engine
from octavo.engine.configure import configure
from octavo.engine.engine_core import EngineCore

SYSTEM, USER, ANSWER = 200, 60, 40  # tokens
TOGETHER = 5  # conversations whose turns are computed together
VOCABULARY = 4096
COMMON = {
    "vocab_size": VOCABULARY,
    "torch_dtype": "float32",
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}
ATTENTION = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
SHAPES: dict[str, dict[str, Any]] = {
    "attention": {
        **COMMON,
        **ATTENTION,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 8,
        "rope_theta": 10000.0,
    },
    "mamba2": {
        **COMMON,
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        "hidden_size": 256,
        "num_hidden_layers": 12,
        "state_size": 64,
        "num_heads": 16,
        "head_dim": 32,
        "n_groups": 1,
        "expand": 2,
        "conv_kernel": 4,
        "chunk_size": 64,
        "rms_norm": True,
        "use_conv_bias": True,
        "use_bias": False,
        "residual_in_fp32": True,
        "layer_norm_epsilon": 1e-5,
        "hidden_act": "silu",
        "time_step_limit": [0.0, 1e9],
        "norm_before_gate": False,
    },
    "hybrid": {
        **COMMON,
        **ATTENTION,
        "architectures": ["BambaForCausalLM"],
        "model_type": "bamba",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 8,
        "attn_layer_indices": [2, 6],
        "mamba_n_heads": 16,
        "mamba_d_head": 32,
        "mamba_n_groups": 1,
        "mamba_d_state": 64,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_chunk_size": 64,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "z_loss_coefficient": 0.0,
    },
}


def make_engine(shape: str, **options: Any) -> EngineCore:
    values = {"load_format": "dummy", "skip_tokenizer_init": True, "max_model_len": 2048, "max_num_seqs": 8}
    configured = configure(Options(dtype="float32", threads=1, **values, **options), SHAPES[shape])
    return build_engine(configured.config, configured.platform)


def chat(engine: EngineCore, num_conversations: int, num_turns: int) -> dict[str, Any]:
    """Turn after turn, every conversation in turn, a few at a time; in the last turn one at a time, for the clock."""
    rng = random.Random(0)
    system = [rng.randrange(VOCABULARY) for _ in range(SYSTEM)]
    histories = [list(system) for _ in range(num_conversations)]
    params = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True)
    prompted = cached = 0
    last_turn: list[float] = []
    for turn in range(num_turns):
        is_last = turn == num_turns - 1
        at_once = 1 if is_last else TOGETHER
        for start in range(0, num_conversations, at_once):
            members = range(start, min(start + at_once, num_conversations))
            for conversation in members:
                histories[conversation] += [rng.randrange(VOCABULARY) for _ in range(USER)]
                prompted += len(histories[conversation])
            started = time.perf_counter()
            for conversation in members:
                engine.add(Submit(str(conversation), list(histories[conversation]), params, started))
            first = 0.0
            while engine.has_work():
                for delta in engine.step().deltas:
                    assert delta.error is None
                    first = first or time.perf_counter() - started
                    histories[int(delta.request_id)] += delta.token_ids
                    if delta.finish_reason is not None:
                        cached += delta.num_cached_tokens
            if is_last:
                last_turn.append(first)
    assert engine.scheduler.cache.usage == 0, "blocks leaked"
    return {
        "cached_share": round(cached / prompted, 4),
        "last_turn_ttft_ms": round(statistics.median(last_turn) * 1e3, 2),
        "histories": [history[-ANSWER:] for history in histories],
    }


def sweep(
    shape: str, num_conversations: int, num_turns: int, full: float, sizes: list[float]
) -> list[dict[str, float]]:
    """Cached share as the cache shrinks. 1 holds every conversation at its end (states: all their checkpoints)."""
    probe = make_engine(shape, kv_cache_memory_bytes=1 << 30).executor.worker
    length = SYSTEM + num_turns * (USER + ANSWER)
    blocks = -(-length // 16)
    per_conversation = sum(
        group.block_bytes * (blocks if group.retention.table_width(4096, 16) > 1 else 2 * num_turns)
        for group in probe.groups
    )
    points = []
    for size in sizes:
        memory = int(per_conversation * num_conversations * size) + 4 * probe.slabs.slab_bytes
        engine = make_engine(shape, kv_cache_memory_bytes=memory)
        share = chat(engine, num_conversations, num_turns)["cached_share"]
        points.append({"size": size, "mib": round(memory / 2**20, 1), "cached_share": share})
        print(f"{shape}: cache of {size:g}: {share:.1%} cached (of {full:.1%})", file=sys.stderr)
    return points


def plot(report: dict[str, Any], path: str) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4))
    for shape, figures in report["shapes"].items():
        points = figures["sweep"]
        axes.plot([p["size"] for p in points], [100 * p["cached_share"] for p in points], marker="o", label=shape)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("cache size, as a share of what every conversation needs")
    axes.set_ylabel("prompt tokens from the cache, %")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 conversations of 4 turns, no sweep")
    parser.add_argument("--output")
    parser.add_argument("--plot")
    args = parser.parse_args()
    conversations, turns = (6, 4) if args.quick else (20, 10)
    sizes = [] if args.quick else [1.0, 0.5, 0.25, 0.125, 0.06]
    report: dict[str, Any] = {"conversations": conversations, "turns": turns, "shapes": {}}
    for shape in SHAPES:
        cached = chat(make_engine(shape, kv_cache_memory_bytes=2 << 30), conversations, turns)
        without = make_engine(shape, kv_cache_memory_bytes=2 << 30, enable_prefix_caching=False)
        plain = chat(without, conversations, turns)
        assert cached.pop("histories") == plain.pop("histories"), "the cache changed an answer"
        figures = {**cached, "uncached_last_turn_ttft_ms": plain["last_turn_ttft_ms"]}
        figures["ttft_ratio"] = round(figures["last_turn_ttft_ms"] / figures["uncached_last_turn_ttft_ms"], 3)
        print(f"{shape}: {figures}", file=sys.stderr)
        figures["sweep"] = sweep(shape, conversations, turns, figures["cached_share"], sizes)
        report["shapes"][shape] = figures
    text = json.dumps(report, indent=1)
    print(text)
    if args.output:
        Path(args.output).write_text(text + "\n")
    if args.plot:
        plot(report, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
