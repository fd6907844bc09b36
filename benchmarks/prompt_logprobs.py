"""Log-probabilities of a long prompt over a large vocabulary: peak memory and seconds, cold and served from the cache.

    python benchmarks/prompt_logprobs.py [--tokens 16000] [--vocab 152000] [--top 5]

The model is tiny and random: what is measured is the scoring. Memory is what the process had resident at its peak, less
what it had once the engine was built.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from pathlib import Path

from octavo import LLM, SamplingParams

MIB = 1 << 20


def resident() -> int:
    """Bytes now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak() -> int:
    """Bytes at the most, so far. (getrusage would begin with those of the process that started this one.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def tiny_model(num_tokens: int, vocab_size: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": num_tokens + 16,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "eos_token_id": None,
    }


def measure(num_tokens: int, vocab_size: int, num_top: int, chunk: int) -> tuple[int, list[tuple[float, int]]]:
    """Bytes of growth at the peak, and seconds and computed tokens of a first and a second visit."""
    llm = LLM(
        tiny_model(num_tokens, vocab_size), load_format="dummy", dtype="float32", kv_cache_memory_bytes=16 * MIB,
        max_num_batched_tokens=chunk, max_num_seqs=1, threads=1,
    )  # fmt: skip
    rng = random.Random(0)
    prompt = [rng.randrange(vocab_size) for _ in range(num_tokens)]
    before, visits = resident(), []
    for _ in range(2):
        counts: list[int] = []
        llm.on_step = lambda stats, _, counts=counts: counts.append(stats.num_scheduled_tokens)  # type: ignore[misc]
        started = time.perf_counter()
        (output,) = llm.generate(
            [prompt], SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=num_top), use_tqdm=False
        )
        assert output.prompt_logprobs is not None and len(output.prompt_logprobs) == num_tokens, output.error
        visits.append((time.perf_counter() - started, sum(counts)))
    return peak() - before, visits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16000)
    parser.add_argument("--vocab", type=int, default=152_000)
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--chunk", type=int, default=8192, help="tokens in a step")
    given = parser.parse_args()
    growth, visits = measure(given.tokens, given.vocab, given.top, given.chunk)
    logits = given.tokens * given.vocab * 4
    print(f"{given.tokens:,} tokens, vocabulary {given.vocab:,}: all logits would be {logits / MIB:,.0f} MiB")
    print(f"peak growth {growth / MIB:,.0f} MiB")
    for name, (seconds, computed) in zip(("cold", "warm"), visits, strict=True):
        print(f"{name}: {seconds:.2f} s, {computed:,} tokens computed")


if __name__ == "__main__":
    main()
