"""The ops and attention of batch_invariant: what a row gets is bitwise the same alone, in any company and at any place.

On a CPU torch's forms are held to it with one and with two threads, and Triton's in its interpreter; on a GPU Triton's.
That they compute the right thing is the business of test_ops, which has them in its table, and of the dense definition.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from octavo.attention.backend import AttentionCall, AttentionQuery, GroupStep, StepContext
from octavo.attention.fixed_split import FixedSplit
from octavo.ops import dispatch
from octavo.platforms import cpu, cuda
from tests.dense_attention import Layout, dense_attention, random_layout
from tests.ops.on_device import IS_INTERPRETED, implementation_of

KERNELS = {"cpu": cpu.INVARIANT.op_order, "gpu": cuda.INVARIANT.op_order}
PRESENT = ["cpu", "gpu"] if "triton_invariant" in dispatch.present()["linear"] else ["cpu"]
NARROW = [torch.float32, torch.bfloat16]


@pytest.fixture(params=[1, 2])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == 2 and request.node.callspec.params.get("kernels") == "gpu":
        pytest.skip("the threads of the host are none of its business")
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


each = pytest.mark.parametrize("kernels", PRESENT)


def op_of(name: str, kernels: str) -> Callable[..., Any]:
    """What `dispatch.use` would bind on that platform."""
    found = next(one for one in KERNELS[kernels] if one in dispatch.present()[name])
    return dispatch.implementation_of(name, found) if kernels == "cpu" else implementation_of(name, found)


def random_rows(rows: int, width: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(rows, width, generator=torch.Generator().manual_seed(rows + width)) * scale).to(dtype)


def is_invariant(run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, sizes: list[int], kernels: str) -> None:
    """Each row of x alone, and at every place of batches of the given sizes, drawn from them."""
    few = kernels == "gpu" and IS_INTERPRETED
    x = x[:2] if few else x
    alone = torch.cat([run(x[row : row + 1].clone()) for row in range(len(x))])
    generator = torch.Generator().manual_seed(len(x))
    for size in [3, 18] if few else sizes:  # the interpreter is slow
        order = torch.randint(len(x), (size,), generator=generator)
        found, expected = run(x[order]), alone[order]
        differ = (found.view(torch.uint8) != expected.view(torch.uint8)).any(-1).nonzero()[:, 0]
        assert not len(differ), f"of {size} rows those at {differ.tolist()}"


SIZES = [1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 64, 65, 100, 257, 511, 600]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 64), (96, 100), (1536, 576), (576, 1536)])
@pytest.mark.usefixtures("_threads")
@each
def test_products(kernels: str, outputs: int, inputs: int, dtype: torch.dtype) -> None:
    if kernels == "gpu" and IS_INTERPRETED and outputs * inputs > 10_000:
        pytest.skip("slow in the interpreter")
    weight, bias = random_rows(outputs, inputs, dtype, inputs**-0.5), random_rows(1, outputs, dtype)[0]
    run = op_of("linear", kernels)
    is_invariant(lambda x: run(x, weight, bias), random_rows(64, inputs, dtype), SIZES, kernels)


def test_rows_that_are_not_finite_harm_no_other() -> None:
    """Also where the inputs are no multiple of what the processor takes at once."""
    for dtype in NARROW:
        for inputs in (64, 100):
            x, weight = random_rows(40, inputs, dtype), random_rows(48, inputs, dtype)
            expected = op_of("linear", "cpu")(x, weight)
            x[7], x[39] = torch.nan, torch.inf
            out = op_of("linear", "cpu")(x, weight)
            kept = [row for row in range(40) if row not in (7, 39)]
            assert torch.equal(out[kept], expected[kept])


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("width", [100, 577, 1536])
@pytest.mark.usefixtures("_threads")
@each
def test_elementwise_ops_and_norms(kernels: str, width: int, dtype: torch.dtype) -> None:
    if kernels == "gpu" and IS_INTERPRETED and width > 100:
        pytest.skip("slow in the interpreter")
    x, weight = random_rows(64, 2 * width, dtype, 2.0), random_rows(1, 2 * width, dtype)[0]
    for name in ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"):
        is_invariant(op_of(name, kernels), x, SIZES, kernels)
    norm, add_norm = op_of("rms_norm", kernels), op_of("add_rms_norm", kernels)
    is_invariant(lambda x: norm(x, weight, 1e-5), x, SIZES, kernels)
    is_invariant(lambda x: add_norm(x, x * 0.5, weight, 1e-5, 1.0)[0], x, SIZES, kernels)
    heads = (2 * width) // 4
    is_invariant(
        lambda x: norm(x[:, : 4 * heads].unflatten(1, (4, heads)), weight[:heads], 1e-5).flatten(1), x, SIZES, kernels
    )


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.usefixtures("_threads")
@each
def test_rotation(kernels: str, dtype: torch.dtype) -> None:
    num_heads, num_kv_heads, size = 6, 2, 24
    run = op_of("rope_and_write", kernels)
    angles = torch.arange(600)[:, None] * 0.7 ** torch.arange(size // 2)
    cos_sin, weight = torch.cat([angles.cos(), angles.sin()], -1), random_rows(1, size, dtype)[0]
    parts = (num_heads * size, num_kv_heads * size, num_kv_heads * size, 1)

    def rotated(x: torch.Tensor) -> torch.Tensor:
        """The last value of a row says its position. Queries, and keys as they were written."""
        q, k, v, position = x.split(parts, -1)
        cache = torch.zeros(600 // 8 + 2, 2, 8, num_kv_heads, size, dtype=dtype)
        slots = torch.arange(len(x))
        q = run(
            q.unflatten(1, (num_heads, size)),
            k.unflatten(1, (num_kv_heads, size)),
            v.unflatten(1, (num_kv_heads, size)),
            position[:, 0].long(),
            cos_sin,
            cache,
            slots,
            weight,
            weight,
            1e-6,
            1.0,
        )
        return torch.cat([q.flatten(1), cache[slots // 8, 0, slots % 8].flatten(1)], -1)

    x = random_rows(64, sum(parts), dtype)
    x[:, -1] = torch.arange(64) * 3
    is_invariant(rotated, x, SIZES, kernels)


@pytest.mark.parametrize("vocab_size", [300, 70_001])
@pytest.mark.usefixtures("_threads")
@each
def test_draws_and_log_probabilities(kernels: str, vocab_size: int) -> None:
    """Coarse logits, of which many are equal; a neighbour's longer list changes nothing."""
    if kernels == "gpu" and IS_INTERPRETED and vocab_size > 300:
        pytest.skip("slow in the interpreter")
    logits = random_rows(20, vocab_size, torch.float32, 3.0).mul_(8).round_().div_(8)
    gather = op_of("gather_logprobs", kernels)

    def likeliest(num_top: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(x: torch.Tensor) -> torch.Tensor:
            ids, logprobs, ranks = gather(x, torch.full((len(x),), 5), num_top)
            columns = [part[:, :4].double() for part in (ids, logprobs, ranks)]
            return torch.cat(columns, 1)

        return run

    is_invariant(likeliest(3), logits, [1, 2, 7, 20], kernels)
    is_invariant(op_of("log_mass", kernels), logits, [1, 2, 7, 20], kernels)
    wider = likeliest(40 if kernels == "cpu" else 20)
    assert torch.equal(likeliest(3)(logits[:3]), wider(logits[:3]))
    if kernels == "gpu":
        choose = op_of("choose_tokens", kernels)

        def drawn(x: torch.Tensor) -> torch.Tensor:
            ones = torch.ones(len(x))
            ids, greatest = choose(x, ones * 0.7, ones.long() * 50, ones * 0.9, ones * 0, ones.long(), ones.long() * 3)
            return torch.stack([ids.double(), greatest.double()], 1)

        if not IS_INTERPRETED:
            is_invariant(drawn, logits, [1, 2, 7, 20], kernels)
        assert torch.equal(drawn(logits[:2].bfloat16()), drawn(logits[:2].bfloat16().float()))
    else:
        mask, sample = op_of("mask_truncated", kernels), op_of("sample", kernels)

        def kept(x: torch.Tensor) -> torch.Tensor:
            ones = torch.ones(len(x))
            x = mask(x, ones.long() * 50, ones * 0.9, ones * 0.01)
            return torch.cat([x, sample(x, ones * 0.37)[:, None].float()], 1)

        is_invariant(kept, logits, [1, 2, 7, 20], kernels)


# ---- functions of torch that the CPU's forms are made of -------------------------------------------------------------


@pytest.mark.parametrize("name", ["exp", "erf", "tanh", "log"])
@pytest.mark.usefixtures("_threads")
def test_functions_give_a_value_the_same_bits_wherever_it_lies(name: str) -> None:
    function = getattr(torch, name)
    x = random_rows(1, 1 << 17, torch.float32, 5.0)[0]
    expected = function(x).view(torch.int32)
    for begin in (0, 1, 7, 33):
        for length in (1, 2, 15, 16, 31, 33, 65, 1000, 32_769, 100_003):
            part = x[begin : begin + length]
            found = function(part.clone()), function(part)
            assert all(torch.equal(one.view(torch.int32), expected[begin : begin + length]) for one in found)


# ---- attention -------------------------------------------------------------------------------------------------------


def fixed_splits() -> list[Any]:
    if "gpu" not in PRESENT:
        return [FixedSplit]
    from octavo.attention.triton_fixed_split import TritonFixedSplit

    return [FixedSplit, TritonFixedSplit]


def attend(backend: Any, layout: Layout, call: AttentionCall) -> torch.Tensor:
    device = "cuda" if backend.name.startswith("triton") and not IS_INTERPRETED else "cpu"
    cache = torch.empty_strided(layout.cache.shape, layout.cache.stride(), dtype=layout.cache.dtype, device=device)
    step = StepContext(
        positions=torch.zeros(len(layout.q)),
        query_start=layout.query_start.to(device),
        seq_lens=layout.seq_lens.to(device),
        query_lens=layout.query_lens,
        max_seq_lens=layout.seq_lens.tolist(),
        groups=[GroupStep(layout.block_table.to(device), torch.empty(0))],
        rows=torch.empty(0),
    )
    step.groups[0].plan = backend.plan(step, 0)
    sinks = None if call.sinks is None else call.sinks.to(device)
    out = backend.forward(layout.q.to(device), cache.copy_(layout.cache), step, 0, replace(call, sinks=sinks))
    return out.cpu()


CASES = [  # query heads, key heads, head size, window, soft cap, dtype, block size
    (4, 2, 16, None, None, torch.float32, 16),
    (6, 2, 16, 21, 1.5, torch.float32, 16),
    (3, 1, 24, 140, None, torch.bfloat16, 16),
    (4, 4, 64, None, 20.0, torch.bfloat16, 32),
]
backends = pytest.mark.parametrize("backend", fixed_splits(), ids=lambda backend: backend.name)
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(part) for part in case[:5]))
ROWS = [(1, 1), (1, 40), (4, 4), (2, 170), (9, 9), (6, 50), (1, 129), (20, 150)]


@cases
@backends
def test_attention_equals_the_dense_definition(backend: Any, case: tuple[Any, ...]) -> None:
    num_heads, num_kv_heads, size, window, soft_cap, dtype, block_size = case
    layout = random_layout(ROWS, num_heads, num_kv_heads, size, window=window, dtype=dtype, block_size=block_size)
    out = attend(backend(), layout, AttentionCall(0.3, num_heads, num_kv_heads, size, window, soft_cap))
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    expected = dense_attention(layout, 0.3, window, soft_cap)
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_over_int8(dtype: torch.dtype) -> None:
    layout = random_layout(ROWS, 4, 2, 24, window=21, dtype=dtype, cache_dtype=torch.int8)
    out = attend(FixedSplit(), layout, AttentionCall(0.3, 4, 2, 24, 21))
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out.double(), dense_attention(layout, 0.3, 21, None), atol=tolerance, rtol=tolerance)


@backends
def test_sinks_take_part_without_values(backend: Any) -> None:
    layout = random_layout(ROWS, 2, 1, 16)
    call = AttentionCall(0.3, 2, 1, 16)
    sinks = torch.tensor([0.5, 2.0])
    out, plain = attend(backend(), layout, replace(call, sinks=sinks)), dense_attention(layout, 0.3, None, None)
    at = 0
    for num_queries, keys in zip(layout.query_lens, layout.keys, strict=True):
        for query in range(num_queries):
            seen = keys[: len(keys) - num_queries + query + 1, 0].double()
            mass = (torch.einsum("lh,nh->nl", seen, layout.q[at + query].double()) * 0.3).exp().sum(1)
            share = mass / (mass + sinks.double().exp())
            torch.testing.assert_close(out[at + query].double(), plain[at + query] * share[:, None], atol=1e-5, rtol=0)
        at += num_queries


@cases
@backends
def test_attention_of_a_query_is_the_same_in_every_step(backend: Any, case: tuple[Any, ...]) -> None:
    """Prompts at once, in chunks and token by token, beside other rows; whatever no query may see is NaN."""
    num_heads, num_kv_heads, size, window, soft_cap, dtype, block_size = case
    is_slow = IS_INTERPRETED and backend is not FixedSplit
    lengths = [70 if is_slow else 290, 3, 37]
    rows = [(length, length) for length in lengths]
    layout = random_layout(rows, num_heads, num_kv_heads, size, dtype=dtype, block_size=block_size)
    call = AttentionCall(0.3, num_heads, num_kv_heads, size, window, soft_cap)
    starts = layout.query_start.tolist()
    expected = attend(backend(), layout, call)
    rng = random.Random(3)
    for number in range(3 if is_slow else 30):
        chosen = rng.sample(range(3), rng.randrange(1, 4))
        steps = []
        for row in chosen:
            end = rng.randrange(1, lengths[row] + 1)
            steps.append((row, end - 1 if number % 3 == 0 else rng.randrange(end), end))
        found = attend(backend(), part_of(layout, steps, window, block_size), call)
        wanted = torch.cat([expected[starts[row] + begin : starts[row] + end] for row, begin, end in steps])
        assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8)), steps


def part_of(layout: Layout, steps: list[tuple[int, int, int]], window: int | None, block_size: int) -> Layout:
    """A step of queries begin:end of some rows, with a cache of what they may see and nothing else."""
    cache = torch.empty_strided(layout.cache.shape, layout.cache.stride(), dtype=layout.cache.dtype)
    cache.copy_(layout.cache)
    for row, begin, end in steps:
        low = 0 if window is None else max(0, begin - window + 1)
        for position in (*range(low), *range(end, len(layout.keys[row]))):
            cache[int(layout.block_table[row, position // block_size]), :, position % block_size] = torch.nan
    starts, lens = layout.query_start.tolist(), [end - begin for _, begin, end in steps]
    return Layout(
        torch.cat([layout.q[starts[row] + begin : starts[row] + end] for row, begin, end in steps]),
        cache,
        layout.block_table[[row for row, *_ in steps]],
        torch.tensor([0, *lens]).cumsum(0).to(torch.int32),
        torch.tensor([end for *_, end in steps], dtype=torch.int32),
        lens,
        [],
        [],
    )


@backends
def test_what_it_cannot_serve_it_says(backend: Any) -> None:
    query = AttentionQuery(64, 4, 2, 16, "float32", "float32")
    assert backend().why_not(query) is None
    assert "cache dtype fp8 is not one of" in str(backend().why_not(replace(query, cache_dtype="fp8")))
