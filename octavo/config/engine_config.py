"""What is true of an engine: frozen and complete. No "auto" here; `resolve.py` makes it, nobody writes to it.

How many blocks the cache has is measured later, by the worker, and does not come back into this record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from octavo.config.checkpoint import Checkpoint
from octavo.core.params import LogprobsMode
from octavo.core.structured import AUTO_ORDER
from octavo.errors import ConfigurationError


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
    quantization: Literal["gguf", "none"] = "none"  # gguf: blocks stay as the file has them
    batch_invariant: bool = False  # a request's logits are bitwise the same whatever it is computed with


@dataclass(frozen=True)
class CacheConfig:
    block_size: int = 16  # tokens
    enable_prefix_caching: bool = True
    hash_algo: str = "sha256"
    memory_bytes: int | None = None  # explicit size; None: measured by the worker from memory_fraction
    memory_fraction: float = 0.92  # of all device memory; of what is free after loading, where the host shares it
    num_blocks_override: int | None = None  # replaces both
    dtype: str = "auto"  # of keys and values; "auto" is the model's
    conv_state_dtype: str = "float32"  # of recurrent layers: the last inputs of their convolutions,
    ssm_state_dtype: str = "float32"  # and what they sum over all tokens
    prompt_logprobs_bytes: int = 1 << 26  # of prompts in the cache, kept for those who ask for the same; 0: none


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
    stream_interval: int = 1  # tokens


@dataclass(frozen=True)
class MachineConfig:
    platform: str
    threads: int
    log_stats: bool
    metrics_prefix: str = "octavo"
    otlp_traces_endpoint: str | None = None
    block_lives_sample: float = 0.0  # share of cache blocks whose lives are measured


@dataclass(frozen=True)
class StructuredConfig:
    """What holds for structured outputs where a request does not say."""

    backends: tuple[str, ...] = AUTO_ORDER  # the first that can honour all of a form makes its grammar
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    enable_in_reasoning: bool = False  # thoughts must have the form too


@dataclass(frozen=True)
class SamplingConfig:
    """Code is named as "module:name"."""

    logprobs_mode: LogprobsMode = "raw_logprobs"  # where a request does not say
    logits_processors: tuple[str, ...] = ()  # classes that see every batch, in this order
    request_processors: Mapping[str, str] = field(default_factory=dict)  # name that requests use -> factory
    processor_timeout: float = 0.5  # seconds that requests' own processors may take of a step; 0: no limit


@dataclass(frozen=True)
class AdmissionConfig:
    """How much may wait in front of the core; what is beyond is refused. None: no limit."""

    max_queued_requests: int | None = None
    max_queued_tokens: int | None = None


@dataclass(frozen=True)
class EngineConfig:
    model: ModelConfig
    cache: CacheConfig
    scheduler: SchedulerConfig
    text: TextConfig
    machine: MachineConfig
    admission: AdmissionConfig = AdmissionConfig()
    structured: StructuredConfig = StructuredConfig()
    sampling: SamplingConfig = SamplingConfig()


def encode_config(config: EngineConfig) -> bytes:
    """For another process. Raises ConfigurationError for values that have no form outside Python, which can come in
    through `hf_overrides`."""
    try:
        return msgspec.msgpack.encode(config, enc_hook=_encode_path)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise ConfigurationError(f"the configuration cannot be sent to the engine's process: {error}") from None


def decode_config(data: bytes) -> EngineConfig:
    """Raises ValueError for what is no configuration."""
    return msgspec.msgpack.decode(data, type=EngineConfig, dec_hook=_decode_path)


def _encode_path(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r}")


def _decode_path(kind: type[Any], value: Any) -> Any:
    if issubclass(kind, Path) and isinstance(value, str):
        return Path(value)
    raise TypeError(f"{kind} from {value!r}")
