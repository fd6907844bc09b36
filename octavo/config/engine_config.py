"""What is true of an engine: frozen and complete. No "auto" here; `resolve.py` makes it, nobody writes to it.

How many blocks the cache has is measured later, by the worker, and does not come back into this record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from octavo.config.checkpoint import Checkpoint


@dataclass(frozen=True)
class ModelConfig:
    checkpoint: Checkpoint  # its config has hf_overrides applied
    tokenizer: str  # directory, GGUF file or hub id; "" with skip_tokenizer_init and a checkpoint that has no path
    dtype: str  # "float32", "bfloat16", "float16"
    max_model_len: int  # tokens, prompt and output together
    max_model_len_may_shrink: bool  # to what the cache holds; else a model that does not fit is refused
    load_format: str  # "safetensors", "gguf", "dummy"
    seed: int
    attention_backend: str | None  # None: any of the platform's order that can serve
    max_logprobs: int
    vocab_size: int


@dataclass(frozen=True)
class CacheConfig:
    block_size: int = 16  # tokens
    enable_prefix_caching: bool = True
    hash_algo: str = "sha256"
    memory_bytes: int | None = None  # explicit size; None: measured by the worker from memory_fraction
    memory_fraction: float = 0.92  # of all device memory; of what is free after loading, where the host shares it
    num_blocks_override: int | None = None  # replaces both


@dataclass(frozen=True)
class SchedulerConfig:
    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    policy: Literal["fcfs", "priority"]
    enable_chunked_prefill: bool
    long_prefill_token_threshold: int  # 0: a fair share
    reserve_full_prompt: bool
    watermark: float  # share of the blocks kept free at admission
    depth: int  # steps in flight


@dataclass(frozen=True)
class TextConfig:
    skip_tokenizer_init: bool
    chat_template: str | None  # a file or the template itself; None: the checkpoint's own, if it has one
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)  # SamplingParams field -> value
    eos_token_ids: tuple[int, ...] = ()  # that the checkpoint's configs name; the tokenizer may add its own


@dataclass(frozen=True)
class MachineConfig:
    platform: str
    threads: int
    log_stats: bool
    metrics_prefix: str = "octavo"
    otlp_traces_endpoint: str | None = None


@dataclass(frozen=True)
class EngineConfig:
    model: ModelConfig
    cache: CacheConfig
    scheduler: SchedulerConfig
    text: TextConfig
    machine: MachineConfig
