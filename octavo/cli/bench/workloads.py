"""Workloads by name: how many requests, how long, how their token ids are drawn; and model shapes for random weights.

single, mixed, chat, prefill, prefix and longctx are drawn exactly as other engines were measured with on GPUs; lengths
come from one generator, seeded 0, that also draws ids, which must therefore be drawn to get the same lengths.
one-long is a single prompt of 128,000 tokens, which no other engine was measured with.
one-stream, prefill-1024, batch and shared-prefix are for CPUs; of `batch` only the range and the total of the lengths
are given elsewhere, so its seed is one that gives that total.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_FIRST_ID, _END_ID = 10, 50_000
_REPETITION_SEED = 100
_BATCH_SEED = 5472  # 64 lengths from 32 to 512 that add up to 18,493


@dataclass(frozen=True)
class Workload:
    """`lengths`: (prompt tokens, output tokens) of each request; the first `shared` tokens are the same in all."""

    name: str
    lengths: tuple[tuple[int, int], ...]
    temperature: float = 0.0
    shared: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        return sum(prompt for prompt, _ in self.lengths)

    @property
    def num_output_tokens(self) -> int:
        return sum(output for _, output in self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of context that the longest request needs."""
        return max(prompt + output for prompt, output in self.lengths)

    def draw(self, repetition: int, vocab_size: int) -> list[list[int]]:
        """Prompts of one repetition: new ones each time. Ids go up to 50,000, or to the vocabulary's end."""
        draw = random.Random(_REPETITION_SEED + repetition)
        end = min(_END_ID, vocab_size)
        shared = _ids(draw, self.shared, end)
        return [shared + _ids(draw, prompt - self.shared, end) for prompt, _ in self.lengths]


def make_workload(name: str) -> Workload:
    return _MAKERS[name]()


def uniform(num_requests: int, prompt: int, output: int) -> Workload:
    """Requests that are all alike."""
    return Workload("custom", ((prompt, output),) * num_requests)


def _ids(draw: random.Random, count: int, end: int = _END_ID) -> list[int]:
    return [draw.randrange(_FIRST_ID, end) for _ in range(count)]


def _mixed() -> Workload:
    draw = random.Random(0)
    lengths = []
    for _ in range(256):
        prompt = draw.randint(100, 1024)
        _ids(draw, prompt)
        lengths.append((prompt, draw.randint(100, 1024)))
    return Workload("mixed", tuple(lengths), temperature=0.6)


def _chat() -> Workload:
    draw = random.Random(0)

    def length(mean: float, deviation: float) -> int:
        return max(4, min(1024, int(draw.lognormvariate(mean, deviation))))

    lengths = []
    for _ in range(1000):
        prompt = length(4.9, 1.1)
        _ids(draw, prompt)
        lengths.append((prompt, length(5.0, 0.9)))
    return Workload("chat", tuple(lengths))


def _batch() -> Workload:
    draw = random.Random(_BATCH_SEED)
    return Workload("batch", tuple((draw.randint(32, 512), 128) for _ in range(64)))


_MAKERS: dict[str, Callable[[], Workload]] = {
    "single": lambda: Workload("single", ((128, 256),)),
    "mixed": _mixed,
    "chat": _chat,
    "prefill": lambda: Workload("prefill", ((8192, 1),) * 16),
    "prefix": lambda: Workload("prefix", ((2048 + 64, 64),) * 256, shared=2048),
    "longctx": lambda: Workload("longctx", ((16_000, 256),) * 8),
    "one-long": lambda: Workload("one-long", ((128_000, 256),)),
    "one-stream": lambda: Workload("one-stream", ((128, 128),)),
    "prefill-1024": lambda: Workload("prefill-1024", ((1024, 1),)),
    "batch": _batch,
    "shared-prefix": lambda: Workload("shared-prefix", ((512 + 32, 32),) * 64, shared=512),
}
WORKLOADS = tuple(_MAKERS)

# The content of config.json, for random weights. "tiny" is next to no model at all: what remains is the engine.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 151_643,
        "eos_token_id": 151_645,
    },
    "llama-8b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 128_000,
        "eos_token_id": 128_001,
    },
    "smollm2-135m": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49_152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "mamba2-1.3b": {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        "hidden_size": 2048,
        "expand": 2,
        "num_hidden_layers": 48,
        "num_heads": 64,
        "head_dim": 64,
        "state_size": 128,
        "n_groups": 1,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "hidden_act": "silu",
        "vocab_size": 50_288,
        "layer_norm_epsilon": 1e-5,
        "residual_in_fp32": True,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "tiny": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": 512,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
