#!/usr/bin/env python3
"""Chats that go on: 20 conversations of 10 turns with one system prompt, dealt out in turn, on a pure Mamba-2, a hybrid
(Bamba) and an attention model (Llama) of about the same size with random weights. For each: the share of prompt tokens
that came from the cache, and the time to the first token of turn 10 with and without it; then the share as the cache
shrinks. JSON to stdout or --output, a plot to --plot.

    benchmarks/multiturn.py [--quick] [--sizes 0.5 ...] [--output FILE] [--plot docs/images/multiturn.svg]
    benchmarks/multiturn.py --simulate [--at-once 1] [--output FILE] [--plot FILE]    # shares only, in seconds

With --simulate the scheduler and the cache run as they are, on caches of the real models' pages, and a device that
computes nothing answers at random; beside the order of last use alone, and also for conversations that go on in no
order and end at some time. A size of 1 is what every conversation needs to be found again at its end (its keys and
values, or one state, and the system prompt), beside what the requests that run together take.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from octavo.cache.groups import CacheGroup, SlabPlan, group_layers, plan_slabs
from octavo.cache.manager import CacheManager
from octavo.cache.retention import KeepLatest
from octavo.config.options import Options
from octavo.core.messages import Submit
from octavo.core.params import SamplingParams
from octavo.core.step import StepPlan, StepResult
from octavo.engine.assemble import build_engine
from octavo.engine.configure import Configured, configure
from octavo.engine.engine_core import EngineCore
from octavo.scheduler.caps import FairShare, StateBorders
from octavo.scheduler.scheduler import Scheduler
from octavo.worker.assemble import build_skeleton

BLOCK_SIZE = 16
SIZES = [1.25, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
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


def configured(shape: str, **options: Any) -> Configured:
    values = {"load_format": "dummy", "skip_tokenizer_init": True, "max_model_len": 1280, "max_num_seqs": 8}
    return configure(Options(dtype="float32", threads=1, **values, **options), SHAPES[shape])


def make_engine(shape: str, **options: Any) -> EngineCore:
    found = configured(shape, **options)
    return build_engine(found.config, found.platform)


class AnsweredStep:
    """A step of a device that computes nothing: every token is random."""

    def __init__(self, plan: StepPlan, rng: random.Random) -> None:
        self.plan = plan
        self.result = StepResult(plan.step_id, [rng.randrange(VOCABULARY) for _ in plan.sampled])

    def finish(self) -> None:
        pass

    def wait(self) -> StepResult:
        return self.result


class RandomAnswers:
    """An executor without a model."""

    def __init__(self) -> None:
        self.rng = random.Random(1)

    def submit(self, plan: StepPlan) -> AnsweredStep:
        return AnsweredStep(plan, self.rng)

    def reset(self) -> None:
        pass

    def shutdown(self) -> None:
        pass


def make_simulated_engine(shape: str, **options: Any) -> EngineCore:
    """The engine with its real cache and scheduler."""
    config = configured(shape, **options).config
    groups, slabs = layout(shape)
    cache = CacheManager(
        groups,
        slabs.blocks_per_slab,
        slabs.num_slabs(options["kv_cache_memory_bytes"]),
        max_chunk=config.scheduler.max_num_batched_tokens,
    )
    caps: list[Any] = [FairShare(cache.block_size), *([StateBorders(cache)] if cache.has_states else [])]
    longest = cache.max_tokens(config.scheduler.max_model_len)
    return EngineCore(Scheduler(config.scheduler, cache, caps), RandomAnswers(), 1, longest, seed=0)


def make_lru_engine(shape: str, **options: Any) -> EngineCore:
    """The same with the order of last use alone."""
    engine = make_simulated_engine(shape, **options)
    cache: Any = engine.scheduler.cache
    cache.reuse.vote = lambda in_time: None
    cache.pool.supersede = lambda block: None
    return engine


def layout(shape: str) -> tuple[tuple[CacheGroup, ...], SlabPlan]:
    found = configured(shape)
    groups = group_layers(build_skeleton(found.config, found.platform)[0].cache_specs())
    return groups, plan_slabs(tuple(group.block_bytes for group in groups))


def needed_bytes(shape: str, num_conversations: int, num_turns: int, at_once: int) -> tuple[int, int]:
    """What all conversations need at their ends to be found again, and what running requests take beside it."""
    groups, slabs = layout(shape)
    own = -(-(num_turns * (USER + ANSWER)) // BLOCK_SIZE)  # blocks of a conversation
    shared = SYSTEM // BLOCK_SIZE
    kept = beside = 0
    for group, stride in zip(groups, slabs.strides, strict=True):
        if isinstance(group.retention, KeepLatest):  # one state each; running: the live one, a rolling copy, a new one
            kept += stride * (num_conversations + 1)
            beside += stride * 3 * at_once
        else:
            kept += stride * (own * num_conversations + shared)
    return kept, beside + 2 * slabs.slab_bytes


def chat(engine: EngineCore, num_conversations: int, num_turns: int, together: int = TOGETHER) -> dict[str, Any]:
    """Turn after turn, every conversation in turn, `together` at a time; in the last turn alone, for the clock."""
    rng = random.Random(0)
    system = [rng.randrange(VOCABULARY) for _ in range(SYSTEM)]
    histories = [list(system) for _ in range(num_conversations)]
    params = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True)
    prompted = cached = 0
    last_turn: list[float] = []
    for turn in range(num_turns):
        is_last = turn == num_turns - 1
        at_once = 1 if is_last else together
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


def wander(engine: EngineCore, num_conversations: int, num_turns: int, together: int) -> dict[str, Any]:
    """As many conversations at any time, of any of which the next turn may come; after half of `num_turns` on average
    one ends and another begins."""
    rng = random.Random(0)
    system = [rng.randrange(VOCABULARY) for _ in range(SYSTEM)]
    histories = [list(system) for _ in range(num_conversations)]
    params = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True)
    prompted = cached = 0
    for _ in range(num_conversations * num_turns * 2 // together):
        members = rng.sample(range(num_conversations), together)
        for conversation in members:
            history = histories[conversation]
            if rng.random() < 2 / num_turns or len(history) > SYSTEM + (num_turns - 1) * (USER + ANSWER):
                history[:] = system
            history += [rng.randrange(VOCABULARY) for _ in range(USER)]
            prompted += len(history)
            engine.add(Submit(str(conversation), list(history), params, 0.0))
        while engine.has_work():
            for delta in engine.step().deltas:
                histories[int(delta.request_id)] += delta.token_ids
                cached += delta.num_cached_tokens if delta.finish_reason is not None else 0
    return {"cached_share": round(cached / prompted, 4)}


def sweep(
    shape: str,
    num_conversations: int,
    num_turns: int,
    sizes: list[float],
    make: Callable[..., EngineCore],
    together: int = TOGETHER,
    workload: Callable[..., dict[str, Any]] = chat,
) -> list[dict[str, float]]:
    """Cached share by cache size."""
    kept, beside = needed_bytes(shape, num_conversations, num_turns, together)
    points = []
    for size in sizes:
        memory = int(kept * size) + beside
        engine = make(shape, kv_cache_memory_bytes=memory)
        share = workload(engine, num_conversations, num_turns, together)["cached_share"]
        points.append({"size": size, "mib": round(memory / 2**20, 1), "cached_share": share})
        print(f"{shape}: cache of {size:g} ({memory / 2**20:.1f} MiB): {share:.1%} cached", file=sys.stderr)
    return points


def plot(report: dict[str, Any], path: str) -> None:
    """Shares by size: lines for simulated caches, crosses for measured ones, and what would be in proportion, from the
    system prompt alone to everything."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    shapes = report["shapes"]
    for color, (shape, figures) in zip(("C0", "C1", "C2"), shapes.items(), strict=True):
        if "simulated" in figures:
            lines = figures["simulated"]
            axes.plot([p["size"] for p in lines], [100 * p["cached_share"] for p in lines], ".-", c=color, label=shape)
        if "simulated_lru" in figures:
            lines = figures["simulated_lru"]
            axes.plot([p["size"] for p in lines], [100 * p["cached_share"] for p in lines], ":", c=color, lw=1)
        points = figures.get("sweep", [])
        axes.plot([p["size"] for p in points], [100 * p["cached_share"] for p in points], "x", c=color)
    ideal = report["proportional"]
    axes.plot(
        [p["size"] for p in ideal], [100 * p["cached_share"] for p in ideal], "--", c="grey", label="in proportion"
    )
    axes.plot([], [], ":", c="grey", lw=1, label="least recently used first")
    axes.plot([], [], "x", c="grey", label="measured")
    axes.set_xlabel("cache size, as a share of what every conversation needs at its end")
    axes.set_ylabel("prompt tokens from the cache, %")
    axes.set_ylim(0, 100)
    axes.set_xlim(0, None)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def proportional(num_conversations: int, num_turns: int) -> list[dict[str, float]]:
    """Shares from nothing but the system prompt to everything, in proportion to the size."""
    system = SYSTEM // BLOCK_SIZE * BLOCK_SIZE
    prompts = [SYSTEM + turn * (USER + ANSWER) + USER for turn in range(num_turns)]
    all_found = system + sum(
        prompt - USER - BLOCK_SIZE // 2 for prompt in prompts[1:]
    )  # half a block is computed again
    shares = (num_turns * system / sum(prompts), all_found / sum(prompts))
    return [{"size": size, "cached_share": round(share, 4)} for size, share in zip((0.0, 1.0), shares, strict=True)]


def compare(shape: str, conversations: int, turns: int) -> dict[str, Any]:
    """With room for everything, with and without prefix caching: figures, and the same answers."""
    cached = chat(make_engine(shape, kv_cache_memory_bytes=2 << 30), conversations, turns)
    without = make_engine(shape, kv_cache_memory_bytes=2 << 30, enable_prefix_caching=False)
    plain = chat(without, conversations, turns)
    assert cached.pop("histories") == plain.pop("histories"), "the cache changed an answer"
    figures = {**cached, "uncached_last_turn_ttft_ms": plain["last_turn_ttft_ms"]}
    figures["ttft_ratio"] = round(figures["last_turn_ttft_ms"] / figures["uncached_last_turn_ttft_ms"], 3)
    print(f"{shape}: {figures}", file=sys.stderr)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 conversations of 4 turns, no sweep")
    parser.add_argument("--simulate", action="store_true", help="only shares by size, without computing anything")
    parser.add_argument("--at-once", type=int, default=TOGETHER, help="conversations whose turns run together")
    parser.add_argument("--sizes", type=float, nargs="*", help="of the measured sweep")
    parser.add_argument("--add-to", metavar="FILE", help="start from what an earlier run wrote to FILE")
    parser.add_argument("--output")
    parser.add_argument("--plot")
    args = parser.parse_args()
    conversations, turns = (6, 4) if args.quick else (20, 10)
    report: dict[str, Any] = {"conversations": conversations, "turns": turns, "shapes": {}}
    if args.add_to:
        report = json.loads(Path(args.add_to).read_text())
    report["proportional"] = proportional(conversations, turns)
    for shape in SHAPES:
        figures = report["shapes"].setdefault(shape, {})
        if args.simulate:
            for name, make in (("simulated", make_simulated_engine), ("simulated_lru", make_lru_engine)):
                figures[name] = sweep(shape, conversations, turns, SIZES, make, args.at_once)
                figures[f"{name}_wandering"] = sweep(shape, conversations, turns, SIZES, make, args.at_once, wander)
            continue
        if "cached_share" not in figures:
            figures.update(compare(shape, conversations, turns))
        if args.sizes and not args.quick:
            figures["sweep"] = sweep(shape, conversations, turns, args.sizes, make_engine)
    text = json.dumps(report, indent=1)
    print(text)
    if args.output:
        Path(args.output).write_text(text + "\n")
    if args.plot:
        plot(report, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
