"""Every option, once. Command line flags and `docs/reference/options.md` are made from this table.

An option says what a user wants and may be left to octavo ("auto", None); `resolve.py` turns options into an
`EngineConfig`, which leaves nothing open. Names, defaults and meanings are those vLLM's users know.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from octavo.errors import ConfigurationError

Model = Annotated[str | dict[str, Any], "model"]
Size = Annotated[int, "bytes"]  # 1073741824, "1GiB", "500MB"
Count = Annotated[int, "tokens"]  # 32768, "32k" (32,000), "32K" (32,768)
Context = Annotated[int, "context"]  # a Count, or "auto", which is -1


def option(
    default: Any,
    group: str,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A row of the table. `low` and `high` are inclusive limits."""
    metadata = {"group": group, "text": text, "low": low, "high": high}
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user said. Make one with `make_options`, which checks every value."""

    # ---- model
    model: Model | None = option(
        None,
        "model",
        "Directory, GGUF file or hub id of the model. Unset: a small demo model, fetched once. "
        "From Python also a config.json's content, with load_format dummy.",
    )
    tokenizer: str | None = option(None, "model", "Directory or hub id of the tokenizer. Unset: the model's own.")
    revision: str | None = option(None, "model", "Branch, tag or commit of a hub id. Unset: its default branch.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "model",
        "Type of weights and activations. auto: as stored, unless this machine would have to emulate it. "
        "Quantised GGUF weights are expanded to it where it is given.",
    )
    quantization: Literal["auto", "gguf", "none"] = option(
        "auto",
        "model",
        "How a GGUF file's quantised weights are held. gguf: as they are, and computed on so (on a CPU). none: "
        "expanded to dtype. auto: as they are where this machine has kernels for it and dtype is auto.",
    )
    load_format: Literal["auto", "safetensors", "gguf", "dummy"] = option(
        "auto", "model", "Weight files to read. auto: what the model has. dummy: random weights from config.json alone."
    )
    seed: int = option(0, "model", "Seed of random weights and of requests that bring none.", low=0, high=2**63 - 1)
    hf_overrides: dict[str, Any] = option({}, "model", "Entries that replace those of config.json.")
    max_logprobs: int = option(
        20,
        "model",
        "Most log-probabilities that a request may ask for at each token. -1: the whole vocabulary.",
        low=-1,
    )
    max_model_len: Context | None = option(
        None,
        "model",
        "Longest context in tokens, prompt and output together. Unset, -1 or auto: what the model was made for, or "
        "what fits into the cache if that is less. A number is kept, or refused if it does not fit.",
        low=-1,
    )

    # ---- text
    skip_tokenizer_init: bool = option(False, "text", "Load no tokenizer: token ids in, token ids out.")
    chat_template: str | None = option(
        None, "text", "File with a Jinja chat template, or the template. Unset: the model's."
    )
    generation_config: str = option(
        "auto",
        "text",
        "Where default sampling values come from. auto: the model's generation_config.json. "
        "vllm: none of them, as in vLLM. Else a directory or file to read.",
    )
    override_generation_config: dict[str, Any] = option(
        {}, "text", "Default sampling values that replace those of the generation config."
    )

    structured_outputs_config: dict[str, Any] = option(
        {},
        "text",
        "How outputs of a set form are made where a request does not say: backend (auto, llguidance, xgrammar, "
        "outlines, lm-format-enforcer), disable_any_whitespace, disable_additional_properties, and "
        "enable_in_reasoning, with which thoughts must have that form too.",
    )
    stream_interval: int = option(
        1,
        "text",
        "Tokens in each output of a streaming request, where it does not say; the first comes at once.",
        low=1,
    )

    # ---- sampling
    logprobs_mode: Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"] = option(
        "raw_logprobs",
        "sampling",
        "What log-probabilities are where a request does not say. raw: as the model gave them. processed: of what the "
        "token is taken from, after masks, penalties, temperature and truncation. logits: before normalisation.",
    )
    logits_processors: list[str] = option(
        [],
        "sampling",
        "Classes that change the logits of every batch, as module:Class. More come from the entry points "
        "octavo.logits_processors. From Python also the classes themselves.",
    )
    request_logits_processors: list[str] = option(
        [],
        "sampling",
        "Logits processors that requests may ask for by name, as name=module:factory; the factory gets the request's "
        "arguments and returns a callable.",
    )
    logits_processor_timeout: float = option(
        0.5,
        "sampling",
        "Seconds that the logits processors of single requests may take in a step; the one that took most of them ends "
        "its request. 0: no limit.",
        low=0.0,
    )

    # ---- cache
    gpu_memory_utilization: float | None = option(
        None,
        "cache",
        "Share of memory to use. On a GPU 0.92 of all of it, weights and activations included. On a CPU, whose memory "
        "other programs need too, 0.5 of what is free once the weights are loaded, for the cache alone.",
        low=0.01,
        high=1.0,
    )
    kv_cache_memory_bytes: Size | None = option(
        None, "cache", "Size of the cache, as 4GiB or 500MB or in bytes. Replaces the share of memory.", low=1
    )
    num_gpu_blocks_override: int | None = option(
        None, "cache", "Number of cache blocks, whatever the memory. For tests and experiments.", low=1
    )
    enable_prefix_caching: bool | None = option(
        None, "cache", "Keep and reuse what is computed of common prefixes. Unset: on."
    )
    prefix_caching_hash_algo: Literal["sha256"] = option("sha256", "cache", "Hash that names a block's tokens.")
    kv_cache_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8_per_token_head"] = option(
        "auto",
        "cache",
        "Type of cached keys and values. auto: the model's. int8_per_token_head: a byte each and a scale for each head "
        "of a token, half of bfloat16's memory and what reading it takes.",
    )
    mamba_cache_dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto",
        "cache",
        "Type of the states of recurrent layers. auto: the model's for the last inputs of convolutions, float32 for "
        "the states proper.",
    )
    mamba_ssm_cache_dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto",
        "cache",
        "Type of the states proper of recurrent layers, without the inputs of convolutions. auto: mamba_cache_dtype "
        "where that is given, else float32.",
    )

    prompt_logprobs_cache_bytes: Size = option(
        1 << 26,
        "cache",
        "Host memory for log-probabilities of cached prompts, so that prompts that come again need not be computed for "
        "theirs. 0: none are kept.",
        low=0,
    )

    # ---- scheduler
    max_num_batched_tokens: Count | None = option(
        None, "scheduler", "Most tokens computed in one step, over all requests. Unset: by platform.", low=1
    )
    max_num_seqs: int | None = option(
        None, "scheduler", "Most requests computed in one step. Unset: by platform.", low=1
    )
    enable_chunked_prefill: bool = option(
        True, "scheduler", "Compute long prompts in parts, together with the next tokens of other requests."
    )
    long_prefill_token_threshold: Count = option(
        0, "scheduler", "Most tokens of one prompt in a step while others wait. 0: a fair share.", low=0
    )
    scheduling_policy: Literal["fcfs", "priority"] = option(
        "fcfs",
        "scheduler",
        "Who goes first. fcfs: who came first. priority: the lowest priority value, then who came first.",
    )
    scheduler_reserve_full_isl: bool = option(
        True, "scheduler", "Start a request only if its whole prompt fits into the cache, not just its first part."
    )
    watermark: float = option(
        0.0, "scheduler", "Share of the cache kept free when a request starts.", low=0.0, high=0.99
    )
    async_scheduling: bool | None = option(
        None, "scheduler", "Plan the next step while one runs. Unset: on where the device works beside the host."
    )
    max_num_queued_reqs: int | None = option(
        None,
        "scheduler",
        "Most requests that may wait for the core to begin them, each of n completions counted; further ones are "
        "refused at once. Unset: no limit.",
        low=1,
    )
    max_num_queued_tokens: Count | None = option(
        None, "scheduler", "Most prompt tokens that may wait in the same way. Unset: no limit.", low=1
    )

    # ---- machine
    attention_backend: str | None = option(
        None, "machine", "Attention kernels by name. Unset: the first that can serve."
    )
    batch_invariant: bool = option(
        False,
        "machine",
        "Bitwise the same logits for a request whatever it is computed with: other requests, chunks, cache hits, "
        "preemption. Slower. Refused for models with recurrent layers.",
    )
    threads: int | None = option(
        None, "machine", "Threads for arithmetic on a CPU. Unset: one for each core this process may use.", low=1
    )
    disable_log_stats: bool = option(
        False, "machine", "Keep no statistics: no throughput in the log, no metrics, no live view."
    )
    metrics_prefix: Literal["octavo", "vllm"] = option(
        "octavo", "machine", "What names of metrics begin with. vllm: as dashboards made for vLLM expect them."
    )
    kv_cache_metrics: bool = option(
        False, "machine", "Measure how long cached blocks live, lie idle and wait to be found again, in a sample."
    )
    kv_cache_metrics_sample: float = option(
        0.01, "machine", "Share of cache blocks in that sample.", low=0.0001, high=1.0
    )
    otlp_traces_endpoint: str | None = option(
        None,
        "machine",
        "Where to send an OpenTelemetry trace of each request, such as http://localhost:4318/v1/traces.",
    )


@dataclass(frozen=True)
class OptionRow:
    """One option, as flags and documents need it."""

    name: str
    kind: str  # "text", "texts", "model", "integer", "number", "switch", "choice", "bytes", "tokens", "context", "json"
    default: Any
    text: str
    group: str
    choices: tuple[str, ...]
    low: float | None
    high: float | None

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def parse(self, text: str) -> Any:
        """The value that `text` stands for on a command line. Raises ConfigurationError."""
        try:
            match self.kind:
                case "integer":
                    return self.check(int(text))
                case "number":
                    return self.check(float(text))
                case "switch":
                    return self.check(_parse_switch(text))
                case "bytes":
                    return self.check(parse_bytes(text))
                case "tokens" | "context":
                    return self.check(parse_tokens(text))
                case "json":
                    return self.check(json.loads(text))
                case "texts":
                    return self.check(json.loads(text) if text.startswith("[") else [text])
        except ConfigurationError:
            raise
        except ValueError:
            raise self.error(text) from None
        return self.check(text)

    def check(self, value: Any) -> Any:
        """`value` if this option can have it, "1GiB" and "auto" as numbers. Raises ConfigurationError."""
        if value is None and self.default is None:
            return None
        if isinstance(value, str) and self.kind in ("bytes", "tokens", "context"):
            return self.parse(value)
        match self.kind:
            case "text":
                good = isinstance(value, str) and value != ""
            case "texts":
                good = isinstance(value, list) and all(isinstance(part, str) and part != "" for part in value)
            case "model":
                good = (isinstance(value, str) and value != "") or (isinstance(value, dict) and len(value) > 0)
            case "choice":
                good = value in self.choices
            case "switch":
                good = isinstance(value, bool)
            case "json":
                good = isinstance(value, dict) and all(isinstance(key, str) for key in value)
            case "number":
                good = isinstance(value, int | float) and not isinstance(value, bool) and self._within(value)
            case _:
                good = isinstance(value, int) and not isinstance(value, bool) and self._within(value)
        if self.kind == "context" and value == 0:
            good = False
        if not good:
            raise self.error(value)
        return value

    def _within(self, value: float) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def limit(self) -> str:
        """What values are allowed, in words."""
        match self.kind:
            case "text":
                return "a string that is not empty"
            case "texts":
                return "a list of strings that are not empty"
            case "model":
                return "a directory, a GGUF file, a hub id or (from Python) the content of a config.json"
            case "choice":
                return "one of " + ", ".join(self.choices)
            case "switch":
                return "true or false"
            case "json":
                return 'a JSON object such as {"key": 1}'
            case "bytes":
                return f"a {'' if self.low == 0 else 'positive '}number of bytes, such as 4GiB, 500MB or 1073741824"
            case "tokens":
                return f"a number of tokens of at least {self.low:g}, such as 2048, 8k or 8K"
            case "context":
                return "a positive number of tokens, such as 4096, 32k or 32K, or auto"
        noun = "a whole number" if self.kind == "integer" else "a number"
        if self.low is not None and self.high is not None:
            high = "2**63 - 1" if self.high == 2**63 - 1 else f"{self.high:g}"
            return f"{noun} between {self.low:g} and {high}"
        return f"{noun} of at least {self.low:g}" if self.low is not None else noun

    def error(self, value: Any) -> ConfigurationError:
        return ConfigurationError(f"{self.name} must be {self.limit()}, got {value!r}")


_KINDS: dict[Any, str] = {str: "text", int: "integer", float: "number", bool: "switch"}


@cache
def option_rows() -> dict[str, OptionRow]:
    """The engine's table by name, in order."""
    return rows_of(Options)


def rows_of(table: type[Any]) -> dict[str, OptionRow]:
    """The rows of a dataclass whose fields are made by `option`, by name and in order."""
    hints = get_type_hints(table, include_extras=True)
    rows = {}
    for field in fields(table):
        hint = hints[field.name]
        if get_origin(hint) in (Union, types.UnionType):
            hint = next(part for part in get_args(hint) if part is not type(None))
        choices: tuple[str, ...] = ()
        if get_origin(hint) is Annotated:
            kind = get_args(hint)[1]
        elif get_origin(hint) is Literal:
            kind, choices = "choice", get_args(hint)
        elif get_origin(hint) is dict:
            kind = "json"
        elif get_origin(hint) is list:
            kind = "texts"
        else:
            kind = _KINDS[hint]
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        data = field.metadata
        rows[field.name] = OptionRow(
            field.name, kind, default, data["text"], data["group"], choices, data["low"], data["high"]
        )
    return rows


def make_options(values: Mapping[str, Any] | None = None, **more: Any) -> Options:
    """Options from names and values, each checked. Raises ConfigurationError, also for names that do not exist."""
    return Options(**check_values(option_rows(), {**(values or {}), **more}))


def check_values(rows: Mapping[str, OptionRow], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values, each checked by its row. Raises ConfigurationError, also for names that have no row."""
    for name in given:
        if name not in rows:
            near = difflib.get_close_matches(name, rows, n=1)
            raise ConfigurationError(f"there is no option {name}" + (f"; did you mean {near[0]}?" if near else ""))
    return {name: rows[name].check(value) for name, value in given.items()}


_BYTE_UNITS = {
    "": 1, "B": 1,
    "K": 2**10, "KB": 10**3, "KIB": 2**10,
    "M": 2**20, "MB": 10**6, "MIB": 2**20,
    "G": 2**30, "GB": 10**9, "GIB": 2**30,
    "T": 2**40, "TB": 10**12, "TIB": 2**40,
}  # fmt: skip
_TOKEN_UNITS = {"": 1, "k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}
_NUMBER_WITH_UNIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Bytes of "1GiB", "500 MB", "2g". KB, MB, GB are powers of ten; KiB, MiB, GiB and bare K, M, G of two."""
    match = _NUMBER_WITH_UNIT.fullmatch(text)
    if match is None or match[2].upper() not in _BYTE_UNITS:
        raise ValueError(f"not a size: {text!r}")
    return _scaled(match[1], _BYTE_UNITS[match[2].upper()])


def parse_tokens(text: str) -> int:
    """Tokens of "4096", "32k" (32,000), "32K" (32,768), "auto" (-1)."""
    if text.strip() in ("auto", "-1"):
        return -1
    match = _NUMBER_WITH_UNIT.fullmatch(text)
    if match is None or match[2] not in _TOKEN_UNITS:
        raise ValueError(f"not a number of tokens: {text!r}")
    return _scaled(match[1], _TOKEN_UNITS[match[2]])


def _scaled(number: str, unit: int) -> int:
    """A decimal times a unit; a fraction only where a unit makes it whole enough to mean something."""
    if "." in number and unit == 1:
        raise ValueError(f"not a whole number: {number}")
    return int(float(number) * unit) if "." in number else int(number) * unit


def _parse_switch(text: str) -> bool:
    word = text.strip().lower()
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise ValueError(text)
