from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from octavo.config.checkpoint import Checkpoint
from octavo.config.model_facts import model_facts
from octavo.config.options import make_options
from octavo.config.resolve import Resolved, explain, resolve
from octavo.core.facts import PlatformFacts
from octavo.errors import CheckpointError, ConfigurationError

CPU = PlatformFacts(
    name="cpu",
    dtypes=("float32", "bfloat16", "float16"),
    fast_dtypes=("bfloat16", "float32"),
    cache_dtypes=("float32", "bfloat16", "float16", "int8_per_token_head"),
    num_threads=6,
    is_asynchronous=False,
    shares_memory=True,
    default_options={"max_num_batched_tokens": 2048, "max_num_seqs": 256, "gpu_memory_utilization": 0.5},
)
OLD_CPU = dataclasses.replace(CPU, fast_dtypes=("float32",))
GPU = PlatformFacts(
    name="cuda",
    dtypes=("bfloat16", "float16", "float32"),
    fast_dtypes=("bfloat16", "float16", "float32"),
    cache_dtypes=("bfloat16", "float16", "float32"),
    num_threads=1,
    is_asynchronous=True,
    shares_memory=False,
    default_options={"max_num_batched_tokens": 8192, "max_num_seqs": 1024},
)
OLD_GPU = dataclasses.replace(GPU, dtypes=("float16", "float32"), fast_dtypes=("float16", "float32"))


CONFIG = {
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "dtype": "bfloat16",
    "eos_token_id": 2,
    "architectures": ["LlamaForCausalLM"],
}


MAMBA = {"architectures": ["MambaForCausalLM"], "state_size": 16, "max_position_embeddings": None}


def run(
    config: dict[str, Any] | None = None,
    platform: PlatformFacts = CPU,
    checkpoint: dict[str, Any] | None = None,
    **options: Any,
) -> Resolved:
    found = Checkpoint(
        **{
            "source": "tiny",
            "path": Path("/models/tiny"),
            "format": "safetensors",
            "config": {**CONFIG, **(config or {})},
            "generation_config": {},
            "name": "tiny",
            **(checkpoint or {}),
        }
    )
    return resolve(make_options(options), found, platform, model_facts(found))


def why(resolved: Resolved, option: str) -> str:
    return next(reason.why for reason in resolved.reasons if reason.option == option)


# ---- quantisation


@pytest.mark.parametrize(
    ("options", "has_kernels", "chosen", "reason"),
    [
        ({}, True, "gguf", "computed on as stored"),
        ({}, False, "none", "no kernels for GGUF blocks on this cpu"),
        ({"dtype": "float32"}, True, "none", "expanded to float32, as dtype asks"),
        ({"dtype": "float32", "quantization": "gguf"}, True, "gguf", "as asked"),
        ({"quantization": "none"}, True, "none", "as asked"),
    ],
)
def test_blocks_stay_where_there_are_kernels(
    options: dict[str, str], has_kernels: bool, chosen: str, reason: str
) -> None:
    platform = dataclasses.replace(CPU, has_block_kernels=has_kernels)
    resolved = run({"dtype": None}, platform, {"format": "gguf"}, **options)
    assert resolved.config.model.quantization == chosen
    assert reason in why(resolved, "quantization")


def test_numbers_are_not_quantised() -> None:
    platform = dataclasses.replace(CPU, has_block_kernels=True)
    for checkpoint in ({}, {"format": "gguf"}):
        resolved = run({"dtype": "bfloat16"}, platform, checkpoint)
        assert resolved.config.model.quantization == "none"
        assert not [reason for reason in resolved.reasons if reason.option == "quantization"]


def test_blocks_that_cannot_stay_are_an_error() -> None:
    with pytest.raises(ConfigurationError, match="tiny has no GGUF weights"):
        run(platform=dataclasses.replace(CPU, has_block_kernels=True), quantization="gguf")
    with pytest.raises(ConfigurationError, match="no kernels for GGUF blocks on this cpu"):
        run(checkpoint={"format": "gguf"}, quantization="gguf")


# ---- dtype


@pytest.mark.parametrize(
    ("stored", "platform", "chosen"),
    [
        ("bfloat16", CPU, "bfloat16"),
        ("bfloat16", OLD_CPU, "float32"),
        ("float16", CPU, "float32"),
        ("float32", CPU, "float32"),
        (None, CPU, "bfloat16"),
        (None, OLD_CPU, "float32"),
        ("bfloat16", OLD_GPU, "float16"),
        ("float16", GPU, "float16"),
        ("torch.float16", GPU, "float16"),
    ],
)
def test_dtype_auto(stored: str | None, platform: PlatformFacts, chosen: str) -> None:
    assert run({"dtype": stored}, platform).config.model.dtype == chosen


def test_dtype_of_older_configs_and_nested_ones() -> None:
    assert run({"dtype": None, "torch_dtype": "float32"}).config.model.dtype == "float32"
    nested = {"text_config": {"vocab_size": 7, "max_position_embeddings": 64}, "dtype": "float32"}
    resolved = run(nested).config
    assert (resolved.model.dtype, resolved.model.vocab_size, resolved.model.max_model_len) == ("float32", 7, 64)


def test_quantised_weights_are_expanded_to_what_the_machine_computes_in() -> None:
    quantised = {"quantization_config": {"quant_method": "gguf"}}
    assert run({"dtype": "bfloat16", **quantised}, OLD_CPU).config.model.dtype == "float32"
    assert run({"dtype": "float32", **quantised}, CPU).config.model.dtype == "bfloat16"


def test_a_dtype_that_overflows_in_the_model_is_not_chosen_and_refused_when_asked_for() -> None:
    gemma = {"model_type": "gemma3_text", "dtype": "float16"}
    assert run(gemma, GPU).config.model.dtype == "bfloat16"
    with pytest.raises(ConfigurationError, match="dtype float16 overflows in LlamaForCausalLM"):
        run(gemma, GPU, dtype="float16")


def test_an_asked_dtype_is_kept_and_emulation_is_said() -> None:
    resolved = run(platform=OLD_CPU, dtype="bfloat16")
    assert resolved.config.model.dtype == "bfloat16" and "emulate" in why(resolved, "dtype")
    with pytest.raises(
        ConfigurationError, match="dtype bfloat16 does not compute on cuda: use one of float16, float32"
    ):
        run(platform=OLD_GPU, dtype="bfloat16")


# ---- context length


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({}, 4096),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 16384),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 8192),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}}, 4096),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 16384),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 512}}, 4096),
        ({"rope_scaling": {"rope_type": "longrope", "original_max_position_embeddings": 512}}, 4096),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, 8192),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 4096),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}}, 8192),
        ({"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, 4096),
        ({"max_position_embeddings": None, "n_positions": 512}, 512),
        ({"max_position_embeddings": None}, 2048),
        ({"model_max_length": 1000}, 1000),
    ],
)
def test_max_model_len_auto(config: dict[str, Any], length: int) -> None:
    resolved = run(config).config
    assert (resolved.model.max_model_len, resolved.scheduler.max_model_len) == (length, length)
    assert resolved.model.max_model_len_may_shrink


def test_an_asked_length_is_kept_or_refused() -> None:
    resolved = run(max_model_len=100).config
    assert resolved.model.max_model_len == 100 and not resolved.model.max_model_len_may_shrink
    assert run(max_model_len=-1).config.model.max_model_len == 4096
    with pytest.raises(
        ConfigurationError, match=r"max_model_len \(4097\) must not exceed 4096: max_position_embeddings"
    ):
        run(max_model_len=4097)


def test_a_model_without_positions_has_a_default_length_and_no_limit() -> None:
    resolved = run(MAMBA)
    assert resolved.config.model.max_model_len == 32_768
    assert "no limit" in why(resolved, "max_model_len")
    assert run(MAMBA, max_model_len=1_000_000).config.scheduler.max_model_len == 1_000_000
    assert run({**MAMBA, "max_position_embeddings": 500}).config.model.max_model_len == 500
    with pytest.raises(ConfigurationError, match=r"max_model_len \(4097\) must not exceed 4096"):
        run({"mamba_d_state": 16, "num_attention_heads": 4}, max_model_len=4097)  # a hybrid


# ---- scheduler


def test_scheduler_defaults_come_from_the_platform() -> None:
    cpu, gpu = run().config.scheduler, run(platform=GPU).config.scheduler
    assert (cpu.max_num_batched_tokens, cpu.max_num_seqs, cpu.depth) == (2048, 256, 1)
    assert (gpu.max_num_batched_tokens, gpu.max_num_seqs, gpu.depth) == (8192, 1024, 2)
    assert run(async_scheduling=True).config.scheduler.depth == 2
    assert run(platform=GPU, async_scheduling=False).config.scheduler.depth == 1


def test_a_small_budget_bounds_the_requests_of_a_step() -> None:
    assert run(max_num_batched_tokens=7).config.scheduler.max_num_seqs == 7
    with pytest.raises(ConfigurationError, match=r"max_num_seqs \(8\) must not exceed max_num_batched_tokens \(7\)"):
        run(max_num_batched_tokens=7, max_num_seqs=8)


def test_without_chunked_prefill_a_step_holds_the_longest_prompt() -> None:
    assert run(enable_chunked_prefill=False).config.scheduler.max_num_batched_tokens == 4096
    assert run(enable_chunked_prefill=False, max_model_len=64).config.scheduler.max_num_batched_tokens == 2048
    with pytest.raises(
        ConfigurationError, match=r"max_num_batched_tokens \(1024\) must be at least max_model_len \(4096\)"
    ):
        run(enable_chunked_prefill=False, max_num_batched_tokens=1024)


def test_the_long_prefill_threshold_is_within_the_context() -> None:
    assert run(long_prefill_token_threshold=4096).config.scheduler.long_prefill_token_threshold == 4096
    with pytest.raises(ConfigurationError, match="long_prefill_token_threshold"):
        run(long_prefill_token_threshold=4097)


def test_options_reach_the_scheduler() -> None:
    scheduler = run(scheduling_policy="priority", scheduler_reserve_full_isl=False, watermark=0.1).config.scheduler
    assert (scheduler.policy, scheduler.reserve_full_prompt, scheduler.watermark) == ("priority", False, 0.1)


# ---- cache


def test_memory() -> None:
    assert run().config.cache.memory_fraction == 0.5
    assert run(platform=GPU).config.cache.memory_fraction == 0.92
    assert run(gpu_memory_utilization=0.3).config.cache.memory_fraction == 0.3
    assert run(kv_cache_memory_bytes="1MiB").config.cache.memory_bytes == 2**20
    assert run(num_gpu_blocks_override=5).config.cache.num_blocks_override == 5
    assert run().config.cache.memory_bytes is None
    with pytest.raises(ConfigurationError, match="both set the cache's size"):
        run(num_gpu_blocks_override=5, kv_cache_memory_bytes=100)


def test_a_share_of_memory_that_is_replaced_says_so() -> None:
    resolved = run(gpu_memory_utilization=0.3, num_gpu_blocks_override=5)
    assert why(resolved, "gpu_memory_utilization") == "not used: num_gpu_blocks_override sets the cache's size"


def test_prefix_caching() -> None:
    assert run().config.cache.enable_prefix_caching
    assert not run(enable_prefix_caching=False).config.cache.enable_prefix_caching
    assert run().config.cache.block_size == 16


def test_dtype_of_the_cache() -> None:
    assert run().config.cache.dtype == "bfloat16"
    assert run(kv_cache_dtype="int8_per_token_head").config.cache.dtype == "int8_per_token_head"
    with pytest.raises(ConfigurationError, match=r"kv_cache_dtype int8_per_token_head .* cuda: use one of auto, bfl"):
        run(platform=GPU, kv_cache_dtype="int8_per_token_head")


@pytest.mark.parametrize(
    ("both", "proper", "dtypes"),
    [
        ("auto", "auto", ("bfloat16", "float32")),
        ("auto", "bfloat16", ("bfloat16", "bfloat16")),
        ("float32", "auto", ("float32", "float32")),
        ("bfloat16", "auto", ("bfloat16", "bfloat16")),
        ("bfloat16", "float32", ("bfloat16", "float32")),
    ],
)
def test_dtypes_of_states(both: str, proper: str, dtypes: tuple[str, str]) -> None:
    resolved = run(MAMBA, mamba_cache_dtype=both, mamba_ssm_cache_dtype=proper)
    assert (resolved.config.cache.conv_state_dtype, resolved.config.cache.ssm_state_dtype) == dtypes
    assert why(resolved, "mamba_ssm_cache_dtype")


def test_dtypes_of_states_mean_nothing_without_states() -> None:
    asked = run(mamba_ssm_cache_dtype="bfloat16")
    assert why(asked, "mamba_ssm_cache_dtype") == "not used: LlamaForCausalLM has no recurrent layers"
    assert not [reason for reason in run().reasons if reason.option.startswith("mamba")]


# ---- model and text


def test_load_format() -> None:
    assert run().config.model.load_format == "safetensors"
    assert run(checkpoint={"format": "gguf"}).config.model.load_format == "gguf"
    assert run(load_format="dummy").config.model.load_format == "dummy"
    with pytest.raises(ConfigurationError, match="load_format gguf: tiny has safetensors weights"):
        run(load_format="gguf")


def test_all_logprobs_are_as_many_as_the_vocabulary() -> None:
    assert run(max_logprobs=-1).config.model.max_logprobs == 1000
    assert run().config.model.max_logprobs == 20


def test_sampling_defaults_come_from_the_generation_config() -> None:
    stored = {"generation_config": {"temperature": 0.6, "top_k": 20, "max_new_tokens": 9, "do_sample": True}}
    assert run(checkpoint=stored).config.text.sampling_defaults == {"temperature": 0.6, "top_k": 20, "max_tokens": 9}
    override = run(checkpoint=stored, override_generation_config={"top_k": 3})
    assert override.config.text.sampling_defaults == {"temperature": 0.6, "top_k": 3, "max_tokens": 9}
    assert "top_k=3" in why(override, "generation_config")
    with pytest.raises(ConfigurationError, match="override_generation_config: temprature cannot be set here"):
        run(override_generation_config={"temprature": 1})


@pytest.mark.parametrize(
    ("generation", "override", "ids"),
    [
        ({}, {}, (2,)),
        ({"eos_token_id": [5, 6]}, {}, (5, 6)),
        ({"eos_token_id": [5, 6]}, {"eos_token_id": 7}, (7,)),
        ({}, {"eos_token_id": [7, 8]}, (7, 8)),
    ],
)
def test_end_of_sequence_tokens(generation: dict[str, Any], override: dict[str, Any], ids: tuple[int, ...]) -> None:
    resolved = run(checkpoint={"generation_config": generation}, override_generation_config=override)
    assert resolved.config.text.eos_token_ids == ids


def test_an_end_of_sequence_token_is_a_token_id() -> None:
    with pytest.raises(ConfigurationError, match="eos_token_id must be a token id or a list of them, got '</s>'"):
        run(override_generation_config={"eos_token_id": "</s>"})


def test_a_configuration_alone_has_no_tokenizer_and_no_weights() -> None:
    alone = {"path": None, "format": "config"}
    resolved = run(checkpoint=alone, load_format="dummy")
    assert resolved.config.text.skip_tokenizer_init and resolved.config.model.load_format == "dummy"
    assert not run(checkpoint=alone, load_format="dummy", tokenizer="/t").config.text.skip_tokenizer_init
    with pytest.raises(ConfigurationError, match="tiny is a configuration without weights: it needs load_format dummy"):
        run(checkpoint=alone, load_format="safetensors")


def test_no_tokenizer_contradicts_a_chosen_one() -> None:
    assert run(skip_tokenizer_init=True).config.text.skip_tokenizer_init
    with pytest.raises(ConfigurationError, match="chat_template has no meaning with skip_tokenizer_init"):
        run(skip_tokenizer_init=True, chat_template="x")


@pytest.mark.parametrize("vocab_size", [None, 0, "many"])
def test_a_config_without_vocabulary_is_refused(vocab_size: Any) -> None:
    with pytest.raises(CheckpointError, match="vocab_size must be a positive number"):
        run({"vocab_size": vocab_size})


# ---- as a whole


def test_resolving_is_pure() -> None:
    assert run(max_num_seqs=3) == run(max_num_seqs=3)


def test_nothing_is_left_open() -> None:
    config = run().config

    def walk(value: Any, path: str) -> None:
        assert value not in ("auto",), path
        if dataclasses.is_dataclass(value) and not isinstance(value, Checkpoint):
            for item in dataclasses.fields(value):
                walk(getattr(value, item.name), f"{path}.{item.name}")

    walk(config, "config")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.scheduler.depth = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("checkpoint", "options", "reason"),
    [
        ({}, {}, "no model was named: the demo model"),
        ({}, {"model": "tiny"}, "as asked"),
        ({"path": None, "format": "config"}, {"load_format": "dummy"}, "a configuration, with random weights"),
    ],
)
def test_where_the_model_comes_from(checkpoint: dict[str, Any], options: dict[str, Any], reason: str) -> None:
    assert why(run(checkpoint=checkpoint, **options), "model") == reason


def test_explain_has_a_line_for_each_choice_with_its_reason() -> None:
    resolved = run(max_num_seqs=3, threads=2)
    lines = explain(resolved.reasons).splitlines()
    assert len(lines) == len(resolved.reasons) == len({reason.option for reason in resolved.reasons})
    by_option = {line.split()[0]: line for line in lines}
    assert by_option["max_num_seqs"].split(maxsplit=2)[1:] == ["3", "as asked"]
    assert by_option["dtype"].split(maxsplit=2)[1:] == ["bfloat16", "as the weights are stored"]
    assert "4,096" in by_option["max_model_len"]
    automatic = {"max_num_batched_tokens", "enable_prefix_caching", "async_scheduling", "load_format", "tokenizer"}
    assert automatic <= set(by_option)


INVARIANT = dataclasses.replace(CPU, has_invariant_kernels=True)


def test_batch_invariance_is_as_asked_where_it_can_be() -> None:
    assert not run(platform=INVARIANT).config.model.batch_invariant
    asked = run(platform=INVARIANT, batch_invariant=True)
    assert asked.config.model.batch_invariant
    assert "slower" in why(asked, "batch_invariant")


@pytest.mark.parametrize(
    ("config", "platform", "options", "message"),
    [
        (MAMBA, INVARIANT, {}, "batch_invariant: MambaForCausalLM has recurrent layers"),
        ({}, CPU, {}, "batch_invariant: there are no such kernels for cpu"),
        ({}, INVARIANT, {"attention_backend": "torch_sdpa"}, r"attention_backend \(torch_sdpa\) and batch_invariant"),
    ],
)
def test_batch_invariance_is_refused_where_it_cannot(
    config: dict[str, Any], platform: PlatformFacts, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run(config, platform, batch_invariant=True, **options)


def test_sampling_options_are_complete_and_name_code() -> None:
    sampling = run().config.sampling
    assert (sampling.logprobs_mode, sampling.logits_processors) == ("raw_logprobs", ())
    assert (dict(sampling.request_processors), sampling.processor_timeout) == ({}, 0.5)
    sampling = run(
        logprobs_mode="processed_logits",
        logits_processors=["a.b:C", "d:E.f"],
        request_logits_processors=["only=a.b:make", "x-y=d:E"],
        logits_processor_timeout=0,
    ).config.sampling
    assert (sampling.logprobs_mode, sampling.logits_processors) == ("processed_logits", ("a.b:C", "d:E.f"))
    assert (dict(sampling.request_processors), sampling.processor_timeout) == ({"only": "a.b:make", "x-y": "d:E"}, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logits_processors": ["a.b.C"]}, "logits_processors must be module:Class, got 'a.b.C'"),
        ({"logits_processors": ["a b:C"]}, "logits_processors must be module:Class, got 'a b:C'"),
        ({"request_logits_processors": ["a:b"]}, "must be name=module:factory, got 'a:b'"),
        ({"request_logits_processors": ["=a:b"]}, "must be name=module:factory, got '=a:b'"),
        ({"request_logits_processors": ["x=a:b", "x=a:c"]}, "request_logits_processors names x twice: a:b and a:c"),
    ],
)
def test_code_that_cannot_be_named_so(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        run(**options)
