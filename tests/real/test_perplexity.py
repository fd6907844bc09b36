"""Perplexity of a fixed text, computed on quantised blocks, beside that of the same weights expanded to float32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.tokenization.tokenizer import Tokenizer
from tests.real.models import BY_NAME

pytestmark = pytest.mark.real

TEXT = Path(__file__).with_name("perplexity_text.txt")
EXPANDED = {"quantization": "none", "dtype": "float32"}


@dataclass(frozen=True)
class Measured:
    """Natural logarithms of the probabilities of every token but the first."""

    logprobs: list[float]

    @property
    def perplexity(self) -> float:
        return math.exp(-sum(self.logprobs) / len(self.logprobs))


@cache
def ids_of(name: str) -> tuple[int, ...]:
    return tuple(Tokenizer.from_path(BY_NAME[name]()).encode(TEXT.read_text()))


def measure(name: str, num_tokens: int | None = None, **options: Any) -> Measured:
    ids = list(ids_of(name)[:num_tokens])
    llm = LLM(str(BY_NAME[name]()), max_model_len=2048, kv_cache_memory_bytes=1 << 28, **options)
    try:
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0)
        (output,) = llm.generate([ids], params, use_tqdm=False)
    finally:
        llm.shutdown()
    assert output.prompt_logprobs is not None and len(output.prompt_logprobs) == len(ids)
    found = zip(ids[1:], output.prompt_logprobs[1:], strict=True)
    return Measured([entry[token].logprob for token, entry in found if entry is not None])


@cache
def expanded(name: str) -> Measured:
    return measure(name, **EXPANDED)


def has_kernels() -> bool:
    try:
        import octavo._cpu  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.skipif(not has_kernels(), reason="the CPU kernels are not compiled")
@pytest.mark.parametrize("name", BY_NAME)
def test_perplexity_is_that_of_expanded_weights_to_three_digits(name: str) -> None:
    """Many rows at a time, as prompts are computed, with activations in float32: what differs is the blocks."""
    reference, quantised = expanded(name), measure(name, quantization="gguf", dtype="float32")
    assert len(reference.logprobs) >= 1000 and 15 < reference.perplexity < 60
    assert quantised.perplexity == pytest.approx(reference.perplexity, rel=5e-4)
    assert deviation(quantised, reference) < 0.03


def test_what_the_defaults_lose() -> None:
    """Activations in bf16, which cost expanded weights as much: 0.045 a token, so that 1,266 tokens have a standard
    error of 0.13%; the bound is four of them."""
    reference, quantised = expanded("smollm2"), measure("smollm2")
    assert quantised.perplexity == pytest.approx(reference.perplexity, rel=5e-3)
    assert deviation(quantised, reference) < 0.08


def test_what_int8_keys_and_values_lose() -> None:
    """Everything else in float32. For heads of 256, as Gemma's, a scale serves four times as many numbers: 0.104."""
    reference, found = expanded("smollm2"), measure("smollm2", kv_cache_dtype="int8_per_token_head", **EXPANDED)
    assert found.perplexity == pytest.approx(reference.perplexity, rel=3e-3)
    assert 0.01 < deviation(found, reference) < 0.05


@pytest.mark.skipif(not has_kernels(), reason="the CPU kernels are not compiled")
def test_a_few_rows_at_a_time_lose_what_rounding_to_bytes_costs() -> None:
    """As answers are computed: four tokens a step, whose inputs are rounded to 8 bits in blocks of 32. The rounding
    written out in float32 deviates by 0.075 for this model; over so few tokens that is up to 1% of a perplexity."""
    name = "smollm2"
    num_tokens = 240
    reference = Measured(expanded(name).logprobs[: num_tokens - 1])
    quantised = measure(name, num_tokens, max_num_batched_tokens=4, max_num_seqs=4)
    assert quantised.perplexity == pytest.approx(reference.perplexity, rel=0.02)
    assert deviation(quantised, reference) < 0.15


def deviation(found: Measured, reference: Measured) -> float:
    """Root mean square of the differences."""
    pairs = zip(found.logprobs, reference.logprobs, strict=True)
    return math.sqrt(sum((one - other) ** 2 for one, other in pairs) / len(reference.logprobs))
