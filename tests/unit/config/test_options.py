from __future__ import annotations

from typing import Any

import pytest

from octavo.config.options import (
    Options,
    make_options,
    option_rows,
    parse_bytes,
    parse_tokens,
)
from octavo.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1GiB", 2**30),
        ("1 GB", 10**9),
        ("2g", 2**31),
        ("1.5KiB", 1536),
        ("500mb", 500 * 10**6),
        ("3T", 3 * 2**40),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "1.5", "-1GiB", "1XB", "1 2", "1e9"])
def test_sizes_that_mean_nothing(text: str) -> None:
    with pytest.raises(ValueError):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "count"), [("4096", 4096), ("32k", 32000), ("32K", 32768), ("1.5k", 1500), ("1M", 2**20), ("auto", -1)]
)
def test_token_counts(text: str, count: int) -> None:
    assert parse_tokens(text) == count


def test_defaults_are_those_users_of_vllm_know() -> None:
    options = Options()
    assert (options.seed, options.max_logprobs, options.watermark) == (0, 20, 0.0)
    assert (options.dtype, options.load_format, options.generation_config) == ("auto", "auto", "auto")
    assert (options.enable_chunked_prefill, options.scheduler_reserve_full_isl) == (True, True)
    assert (options.scheduling_policy, options.long_prefill_token_threshold) == ("fcfs", 0)
    assert options.enable_prefix_caching is None and options.max_model_len is None


def test_every_default_passes_its_own_check() -> None:
    for row in option_rows().values():
        assert row.check(row.default) == row.default, row.name


def test_every_option_says_what_it_does() -> None:
    for row in option_rows().values():
        assert row.text.endswith("."), row.name
        assert row.limit()
    assert len(option_rows()) <= 80


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dtype", "int8", "dtype must be one of auto, float32, bfloat16, float16, got 'int8'"),
        ("max_num_seqs", 0, "max_num_seqs must be a whole number of at least 1, got 0"),
        ("max_num_seqs", True, "max_num_seqs must be a whole number"),
        ("max_num_seqs", 2.0, "max_num_seqs must be a whole number"),
        ("max_model_len", 0, "max_model_len must be a positive number of tokens"),
        ("max_model_len", -2, "max_model_len must be a positive number of tokens"),
        ("max_num_batched_tokens", "auto", "max_num_batched_tokens must be a number of tokens of at least 1"),
        ("gpu_memory_utilization", 1.5, "gpu_memory_utilization must be a number between 0.01 and 1, got 1.5"),
        ("gpu_memory_utilization", float("nan"), "gpu_memory_utilization must be a number between"),
        ("kv_cache_memory_bytes", "lots", "kv_cache_memory_bytes must be a positive number of bytes"),
        ("enable_prefix_caching", "yes", "enable_prefix_caching must be true or false, got 'yes'"),
        ("hf_overrides", [1], "hf_overrides must be a JSON object"),
        ("model", "", "model must be a directory, a GGUF file"),
        ("tokenizer", "", "tokenizer must be a string that is not empty"),
        ("seed", None, "seed must be a whole number between 0 and 2\\*\\*63 - 1, got None"),
        ("max_logprobs", -2, "max_logprobs must be a whole number of at least -1"),
    ],
)
def test_bad_values_are_refused_with_name_value_and_limit(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_options({name: value})


def test_strings_of_sizes_become_numbers() -> None:
    options = make_options(kv_cache_memory_bytes="1GiB", max_model_len="auto", max_num_batched_tokens="2k")
    assert (options.kv_cache_memory_bytes, options.max_model_len, options.max_num_batched_tokens) == (2**30, -1, 2000)


def test_a_model_is_named_or_described() -> None:
    assert make_options(model="/a").model == "/a"
    assert make_options(model={"model_type": "llama"}).model == {"model_type": "llama"}


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"no option max_model_length; did you mean max_model_len\?"):
        make_options(max_model_length=1)


def test_options_do_not_share_their_dictionaries() -> None:
    assert Options().hf_overrides is not Options().hf_overrides
