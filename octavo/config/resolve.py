"""Options + checkpoint + platform → EngineConfig, with the reason for every choice. A pure function: it reads no file,
asks no machine and logs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from octavo.config.engine_config import (
    AdmissionConfig,
    CacheConfig,
    EngineConfig,
    MachineConfig,
    ModelConfig,
    SamplingConfig,
    SchedulerConfig,
    StructuredConfig,
    TextConfig,
)
from octavo.config.options import Options, option_rows
from octavo.core.facts import ModelFacts, PlatformFacts
from octavo.core.structured import AUTO_ORDER, BACKENDS, canonical_backend
from octavo.errors import ConfigurationError

if TYPE_CHECKING:
    from octavo.config.checkpoint import Checkpoint

# Where neither the user nor the platform says anything.
_DEFAULT_NUM_BATCHED_TOKENS = 2048
_DEFAULT_NUM_SEQS = 256
_DEFAULT_MEMORY_FRACTION = 0.92

# Entries of generation_config.json that are defaults of SamplingParams fields.
_SAMPLING_FIELDS = {
    "repetition_penalty": "repetition_penalty",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "max_new_tokens": "max_tokens",
}


@dataclass(frozen=True)
class Reason:
    """Why an option has its value. `value` is what it became, not what was asked."""

    option: str
    value: Any
    why: str


@dataclass(frozen=True)
class Resolved:
    config: EngineConfig
    reasons: list[Reason]


def resolve(
    options: Options,
    checkpoint: Checkpoint,
    platform: PlatformFacts,
    model: ModelFacts,
    processors: Sequence[str] = (),
) -> Resolved:
    """`checkpoint` has `hf_overrides` applied and the `generation_config` that the options name; `model` describes it;
    `processors` are the logits processors that installed packages bring. Raises ConfigurationError."""
    choice = _Choice(options, platform, model)
    model_config = choice.model(checkpoint)
    config = EngineConfig(
        model=model_config,
        cache=choice.cache(model_config.dtype),
        scheduler=choice.scheduler(model_config.max_model_len),
        text=choice.text(checkpoint),
        machine=choice.machine(),
        admission=AdmissionConfig(options.max_num_queued_reqs, options.max_num_queued_tokens),
        structured=choice.structured(),
        sampling=choice.sampling(processors),
    )
    return Resolved(config, choice.in_order())


def explain(reasons: list[Reason]) -> str:
    """One line for each choice: option, value, reason."""
    names = [reason.option for reason in reasons]
    values = [_shown(reason.value) for reason in reasons]
    name_width = max(map(len, names), default=0)
    value_width = min(max(map(len, values), default=0), 40)
    return "\n".join(
        f"{name:<{name_width}}  {value:<{value_width}}  {reason.why}"
        for name, value, reason in zip(names, values, reasons, strict=True)
    )


class _Choice:
    """One resolution under way: makes the parts of the config and collects reasons."""

    def __init__(self, options: Options, platform: PlatformFacts, model: ModelFacts) -> None:
        self.options, self.platform, self.facts = options, platform, model
        self.reasons: list[Reason] = []

    def because(self, name: str, value: Any, why: str) -> None:
        self.reasons.append(Reason(name, value, why))

    def in_order(self) -> list[Reason]:
        """All reasons in the table's order, with those for options that the user set and nobody changed."""
        known = {reason.option: reason for reason in self.reasons}
        for name, row in option_rows().items():
            value = getattr(self.options, name)
            if name not in known and value != row.default:
                known[name] = Reason(name, value, "as asked")
        return [known[name] for name in option_rows() if name in known]

    # ---- parts

    def model(self, checkpoint: Checkpoint) -> ModelConfig:
        options = self.options
        if checkpoint.path is None:
            self.because("model", checkpoint.name, "a configuration, with random weights")
        else:
            why = "as asked" if options.model is not None else "no model was named: the demo model"
            self.because("model", checkpoint.name, why)
        max_model_len, may_shrink = self._max_model_len()
        backend = options.attention_backend
        if backend is None:
            self.because(
                "attention_backend", "by platform", "the first of the platform's order that can serve the model"
            )
        max_logprobs = options.max_logprobs
        if max_logprobs == -1:
            max_logprobs = self.facts.vocab_size
            self.because("max_logprobs", max_logprobs, "-1 is the whole vocabulary")
        return ModelConfig(
            checkpoint=checkpoint,
            tokenizer=self._tokenizer(checkpoint),
            dtype=self._dtype(),
            max_model_len=max_model_len,
            max_model_len_may_shrink=may_shrink,
            load_format=self._load_format(checkpoint),
            seed=options.seed,
            attention_backend=backend,
            max_logprobs=max_logprobs,
            vocab_size=self.facts.vocab_size,
            quantization=self._quantization(checkpoint),
            batch_invariant=self._batch_invariant(),
        )

    def cache(self, dtype: str) -> CacheConfig:
        options = self.options
        caching = options.enable_prefix_caching
        if caching is None:
            caching = True
            self.because("enable_prefix_caching", True, "reuse costs next to nothing where prompts share nothing")
        fraction = options.gpu_memory_utilization
        if fraction is None:
            fraction = self._platform_default("gpu_memory_utilization", _DEFAULT_MEMORY_FRACTION)
            of = "what is free once weights are loaded; the rest is for other programs"
            of = of if self.platform.shares_memory else "the device's memory, weights and activations included"
            if options.kv_cache_memory_bytes is None and options.num_gpu_blocks_override is None:
                self.because("gpu_memory_utilization", fraction, f"the share of {of}")
        elif options.num_gpu_blocks_override is not None:
            self.because("gpu_memory_utilization", fraction, "not used: num_gpu_blocks_override sets the cache's size")
        elif options.kv_cache_memory_bytes is not None:
            self.because("gpu_memory_utilization", fraction, "not used: kv_cache_memory_bytes sets the cache's size")
        if options.kv_cache_memory_bytes is not None and options.num_gpu_blocks_override is not None:
            raise ConfigurationError(
                "kv_cache_memory_bytes and num_gpu_blocks_override both set the cache's size: give one of them"
            )
        conv_state_dtype, ssm_state_dtype = self._state_dtypes(dtype)
        return CacheConfig(
            dtype=self._kv_cache_dtype(dtype),
            enable_prefix_caching=caching,
            hash_algo=options.prefix_caching_hash_algo,
            memory_bytes=options.kv_cache_memory_bytes,
            memory_fraction=fraction,
            num_blocks_override=options.num_gpu_blocks_override,
            conv_state_dtype=conv_state_dtype,
            ssm_state_dtype=ssm_state_dtype,
            prompt_logprobs_bytes=options.prompt_logprobs_cache_bytes,
        )

    def scheduler(self, max_model_len: int) -> SchedulerConfig:
        options = self.options
        tokens = self._num_batched_tokens(max_model_len)
        seqs = options.max_num_seqs
        if seqs is None:
            seqs = self._platform_default("max_num_seqs", _DEFAULT_NUM_SEQS)
            why = f"the default on {self.platform.name}"
            if seqs > tokens:
                seqs, why = tokens, "no more requests than tokens in a step (max_num_batched_tokens)"
            self.because("max_num_seqs", seqs, why)
        elif seqs > tokens:
            raise ConfigurationError(
                f"max_num_seqs ({seqs}) must not exceed max_num_batched_tokens ({tokens}): "
                "every running request needs at least one token of a step"
            )
        threshold = options.long_prefill_token_threshold
        if threshold > max_model_len:
            raise ConfigurationError(
                f"long_prefill_token_threshold ({threshold}) must not exceed max_model_len ({max_model_len})"
            )
        return SchedulerConfig(
            max_num_batched_tokens=tokens,
            max_num_seqs=seqs,
            max_model_len=max_model_len,
            policy=options.scheduling_policy,
            enable_chunked_prefill=options.enable_chunked_prefill,
            long_prefill_token_threshold=threshold,
            reserve_full_prompt=options.scheduler_reserve_full_isl,
            watermark=options.watermark,
            depth=self._depth(),
        )

    def text(self, checkpoint: Checkpoint) -> TextConfig:
        options = self.options
        skip = options.skip_tokenizer_init
        if skip:
            for name in ("tokenizer", "chat_template"):
                if getattr(options, name) is not None:
                    raise ConfigurationError(f"{name} has no meaning with skip_tokenizer_init: give one of them")
        elif checkpoint.path is None and options.tokenizer is None:
            skip = True
            self.because("skip_tokenizer_init", True, "a configuration alone brings no tokenizer")
        override = options.override_generation_config
        unknown = sorted(set(override) - set(_SAMPLING_FIELDS) - {"eos_token_id"})
        if unknown:
            raise ConfigurationError(
                f"override_generation_config: {', '.join(unknown)} cannot be set here; "
                f"known are {', '.join(_SAMPLING_FIELDS)}, eos_token_id"
            )
        merged = {**checkpoint.generation_config, **override}
        defaults = {field: merged[entry] for entry, field in _SAMPLING_FIELDS.items() if merged.get(entry) is not None}
        words = {"auto": "the model's generation_config.json sets", "vllm": "octavo's own defaults;"}
        where = words.get(options.generation_config, f"{options.generation_config} sets")
        where += " and override_generation_config set" if override else ""
        shown = ", ".join(f"{field}={value}" for field, value in defaults.items()) or "no sampling value"
        self.because("generation_config", options.generation_config, f"{where} {shown}")
        eos = _token_ids(override["eos_token_id"]) if "eos_token_id" in override else checkpoint.eos_token_ids
        return TextConfig(skip, options.chat_template, defaults, eos, options.stream_interval)

    def machine(self) -> MachineConfig:
        threads = self.options.threads
        if threads is None:
            threads = self.platform.num_threads
            self.because("threads", threads, "one for each core this process may use")
        options = self.options
        return MachineConfig(
            self.platform.name,
            threads,
            not options.disable_log_stats,
            options.metrics_prefix,
            options.otlp_traces_endpoint,
            options.kv_cache_metrics_sample if options.kv_cache_metrics and not options.disable_log_stats else 0.0,
        )

    def structured(self) -> StructuredConfig:
        name, given = "structured_outputs_config", dict(self.options.structured_outputs_config)
        backend = given.pop("backend", "auto")
        switches = {field.name for field in fields(StructuredConfig)} - {"backends"}
        for entry, value in given.items():
            if entry not in switches:
                raise ConfigurationError(
                    f"{name} has no entry {entry!r}; known are backend, {', '.join(sorted(switches))}"
                )
            if not isinstance(value, bool):
                raise ConfigurationError(f"{name}.{entry} must be true or false, got {value!r}")
        if not isinstance(backend, str) or canonical_backend(backend) not in BACKENDS:
            raise ConfigurationError(f"{name}.backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        backend = canonical_backend(backend)
        if backend == "auto":
            self.because(name, "auto", f"the first of {', '.join(AUTO_ORDER)} that can honour all of a request's form")
        return StructuredConfig(AUTO_ORDER if backend == "auto" else (backend,), **given)

    def sampling(self, installed: Sequence[str]) -> SamplingConfig:
        options = self.options
        paths = tuple(dict.fromkeys([*installed, *options.logits_processors]))
        if installed:
            self.because("logits_processors", ", ".join(paths), f"installed packages bring {', '.join(installed)}")
        for path in options.logits_processors:
            _check_path("logits_processors", path, "module:Class")
        factories: dict[str, str] = {}
        for given in options.request_logits_processors:
            name, _, path = given.partition("=")
            _check_path("request_logits_processors", given, "name=module:factory", path if name else "")
            if name in factories:
                raise ConfigurationError(f"request_logits_processors names {name} twice: {factories[name]} and {path}")
            factories[name] = path
        return SamplingConfig(options.logprobs_mode, paths, factories, options.logits_processor_timeout)

    # ---- single choices

    def _tokenizer(self, checkpoint: Checkpoint) -> str:
        if self.options.tokenizer is not None:
            return self.options.tokenizer
        if checkpoint.path is None:
            return ""
        self.because("tokenizer", str(checkpoint.path), "the model's own")
        return str(checkpoint.path)

    def _dtype(self) -> str:
        asked, stored, fast = self.options.dtype, self.facts.dtype, self.platform.fast_dtypes
        unsafe = self.facts.unsafe_dtypes
        if asked != "auto":
            if asked not in self.platform.dtypes:
                known = ", ".join(self.platform.dtypes)
                raise ConfigurationError(f"dtype {asked} does not compute on {self.platform.name}: use one of {known}")
            if asked in unsafe:
                raise ConfigurationError(
                    f"dtype {asked} overflows in {self.facts.architecture}: use bfloat16 or float32"
                )
            why = "as asked" if asked in fast else f"as asked, though this {self.platform.name} has to emulate it"
            self.because("dtype", asked, why)
            return asked
        usable = [dtype for dtype in fast if dtype not in unsafe] or ["float32"]
        if stored in usable:
            dtype, why = stored, "as the weights are stored"
        elif stored is None:
            dtype, why = usable[0], "quantised or untyped weights, and what this machine computes in best"
        else:
            # Host memory is plentiful, and float32 holds every value of the shorter types.
            dtype = "float32" if self.platform.shares_memory else usable[0]
            trouble = (
                "overflows in this model" if stored in unsafe else f"would be emulated on this {self.platform.name}"
            )
            why = f"stored as {stored}, which {trouble}"
        self.because("dtype", dtype, why)
        return dtype

    def _quantization(self, checkpoint: Checkpoint) -> Literal["gguf", "none"]:
        asked, has_kernels = self.options.quantization, self.platform.has_block_kernels
        has_blocks = checkpoint.format == "gguf" and self.options.load_format != "dummy"
        if asked == "gguf":
            if not has_blocks:
                raise ConfigurationError(f"quantization gguf: {checkpoint.name} has no GGUF weights")
            if not has_kernels:
                raise ConfigurationError(
                    f"quantization gguf: octavo has no kernels for GGUF blocks on this {self.platform.name}; use none, "
                    "which expands them"
                )
            if self.options.batch_invariant:
                raise ConfigurationError("quantization gguf: batch_invariant has no kernels for GGUF blocks; use none")
            return "gguf"
        if asked == "none" or not has_blocks or self.facts.dtype is not None:
            return "none"
        if self.options.batch_invariant:
            why = "expanded: batch_invariant has no kernels for GGUF blocks"
        elif not has_kernels:
            why = f"expanded: octavo has no kernels for GGUF blocks on this {self.platform.name}"
        elif self.options.dtype != "auto":
            why = f"expanded to {self.options.dtype}, as dtype asks"
        else:
            self.because("quantization", "gguf", "computed on as stored")
            return "gguf"
        self.because("quantization", "none", why)
        return "none"

    def _load_format(self, checkpoint: Checkpoint) -> str:
        asked: str = self.options.load_format
        if asked == "dummy":
            return asked
        if asked == "auto":
            asked = checkpoint.format
            self.because("load_format", asked, "what the model has")
        if checkpoint.format == "config":
            raise ConfigurationError(
                f"{checkpoint.name} is a configuration without weights: it needs load_format dummy"
            )
        if asked != checkpoint.format:
            raise ConfigurationError(f"load_format {asked}: {checkpoint.name} has {checkpoint.format} weights")
        return asked

    def _max_model_len(self) -> tuple[int, bool]:
        asked, most = self.options.max_model_len, self.facts.max_positions
        if asked is None or asked == -1:
            self.because("max_model_len", most, f"{self.facts.max_positions_reason}; less if the cache cannot hold it")
            return most, True
        if asked > most and self.facts.has_positions:
            raise ConfigurationError(
                f"max_model_len ({asked}) must not exceed {most}: {self.facts.max_positions_reason}. "
                "hf_overrides can raise that, at the price of positions the model was not made for"
            )
        return asked, False

    def _kv_cache_dtype(self, dtype: str) -> str:
        asked, known = self.options.kv_cache_dtype, self.platform.cache_dtypes
        if asked == "auto":
            return dtype
        if asked in known:
            return asked
        raise ConfigurationError(
            f"kv_cache_dtype {asked} is not kept on {self.platform.name}: use one of {', '.join(('auto', *known))}"
        )

    def _state_dtypes(self, dtype: str) -> tuple[str, str]:
        """Of the inputs of convolutions, and of the states proper."""
        both, proper = self.options.mamba_cache_dtype, self.options.mamba_ssm_cache_dtype
        if not self.facts.is_recurrent:
            for name, asked in (("mamba_cache_dtype", both), ("mamba_ssm_cache_dtype", proper)):
                if asked != "auto":
                    self.because(name, asked, f"not used: {self.facts.architecture} has no recurrent layers")
            return dtype, "float32"
        if both == "auto":
            self.because("mamba_cache_dtype", dtype, "convolutions keep their inputs as they come")
            if proper == "auto":
                self.because("mamba_ssm_cache_dtype", "float32", "a state sums over all tokens, and its rounding too")
                return dtype, "float32"
            return dtype, proper
        if proper == "auto":
            self.because("mamba_ssm_cache_dtype", both, "as mamba_cache_dtype")
            return both, both
        return both, proper

    def _batch_invariant(self) -> bool:
        if not self.options.batch_invariant:
            return False
        if self.facts.is_recurrent:
            raise ConfigurationError(
                f"batch_invariant: {self.facts.architecture} has recurrent layers, which sum over the tokens of a step "
                "in an order that depends on how they are scheduled. Leave the option out for this model"
            )
        if not self.platform.has_invariant_kernels:
            raise ConfigurationError(f"batch_invariant: there are no such kernels for {self.platform.name}")
        if self.options.attention_backend is not None:
            raise ConfigurationError(
                f"attention_backend ({self.options.attention_backend}) and batch_invariant, which brings an attention "
                "of its own, exclude each other: give one of them"
            )
        self.because("batch_invariant", True, "as asked: one kernel and one order of sums for every row; slower")
        return True

    def _num_batched_tokens(self, max_model_len: int) -> int:
        asked, chunked = self.options.max_num_batched_tokens, self.options.enable_chunked_prefill
        if asked is not None:
            if not chunked and asked < max_model_len:
                raise ConfigurationError(
                    f"max_num_batched_tokens ({asked}) must be at least max_model_len ({max_model_len}) "
                    "without chunked prefill, or long prompts could never be computed"
                )
            return asked
        tokens: int = self._platform_default("max_num_batched_tokens", _DEFAULT_NUM_BATCHED_TOKENS)
        why = f"the default on {self.platform.name}"
        if not chunked and tokens < max_model_len:
            tokens, why = max_model_len, "without chunked prefill a step must hold the longest prompt"
        self.because("max_num_batched_tokens", tokens, why)
        return tokens

    def _depth(self) -> int:
        asked, beside = self.options.async_scheduling, self.platform.is_asynchronous
        if asked is None:
            why = (
                "the device works beside the host" if beside else "the host is the device: there is nothing to overlap"
            )
            self.because("async_scheduling", beside, why)
            asked = beside
        return 2 if asked else 1

    def _platform_default(self, name: str, otherwise: Any) -> Any:
        return self.platform.default_options.get(name, otherwise)


def _check_path(option: str, given: str, form: str, path: str | None = None) -> None:
    """Raises ConfigurationError where `path` (`given`, if there is none) is no "module:name"."""
    module, _, name = (given if path is None else path).partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise ConfigurationError(f"{option} must be {form}, got {given!r}")


def _token_ids(value: Any) -> tuple[int, ...]:
    """`eos_token_id` as a user writes it: a number or a list of them."""
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in ids):
        raise ConfigurationError(
            f"override_generation_config.eos_token_id must be a token id or a list of them, got {value!r}"
        )
    return tuple(ids)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}" if isinstance(value, int) else str(value)
