"""Every implementation of every op that this machine has, over a table of shapes, against formulas of its own."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from octavo.ops import dispatch
from octavo.ops.torch.cache import from_cache, to_cache
from tests.dense_attention import as_int8, dense_attention, random_layout
from tests.ops import test_sampling, test_ssm
from tests.ops.on_device import IS_INTERPRETED, implementation_of, on_gpu

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
DTYPES = list(TOLERANCE)
SHAPES = [(1, 8), (3, 48), (6, 100), (2, 576)]


def each(op: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("implementation", dispatch.present()[op])


def random(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    assert found.is_contiguous()
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(found.double(), expected.double(), atol=tolerance, rtol=tolerance)


def normed(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
    x = x.double()
    return x / (x.pow(2).sum(-1, keepdim=True) / x.shape[-1] + eps) ** 0.5 * (weight.double() + offset)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [*SHAPES, (4, 3, 16)])
@pytest.mark.parametrize("dtype", DTYPES)
@each("rms_norm")
def test_rms_norm(implementation: str, dtype: torch.dtype, shape: tuple[int, ...], offset: float) -> None:
    run = implementation_of("rms_norm", implementation)
    x, weight = random(*shape, dtype=dtype, scale=3.0), random(shape[-1], dtype=dtype, seed=1)
    close(run(x, weight, 0.1, offset), normed(x, weight, 0.1, offset), dtype)
    strided = random(*shape[:-1], shape[-1] + 8, dtype=dtype)[..., : shape[-1]]
    close(run(strided, weight, 1e-6, offset), normed(strided, weight, 1e-6, offset), dtype)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@each("add_rms_norm")
def test_add_rms_norm(implementation: str, dtype: torch.dtype, shape: tuple[int, int], offset: float) -> None:
    x, residual, weight = (random(*shape, dtype=dtype, seed=seed) for seed in (0, 1, 2))
    weight = weight[0]
    kept = x.clone(), residual.clone()
    out, total = implementation_of("add_rms_norm", implementation)(x, residual, weight, 1e-5, offset)
    close(total, (x.double() + residual.double()).to(dtype), dtype)
    close(out, normed(total, weight, 1e-5, offset), dtype)
    assert torch.equal(x, kept[0])
    assert torch.equal(residual, kept[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each("add_rms_norm")
def test_a_wide_residual_stays_wide(implementation: str, dtype: torch.dtype) -> None:
    x, weight = random(3, 48, dtype=dtype), random(48, dtype=dtype, seed=1)
    residual = random(3, 96, dtype=torch.float32, seed=2, scale=5.0)[:, ::2].contiguous()
    out, total = implementation_of("add_rms_norm", implementation)(x, residual, weight, 1e-5, 1.0)
    assert total.dtype == torch.float32
    assert torch.equal(total, residual + x.float())
    close(out, normed(total.to(dtype), weight, 1e-5, 1.0), dtype)


@each("rms_norm")
def test_rms_norm_of_heads_inside_a_product(implementation: str) -> None:
    """Three dimensions that cannot be seen as two; and NaN stays in its own row."""
    heads = random(5, 7, 12, dtype=torch.float32)[:, 2:6]
    heads[1, 2, 3], heads[2, 0, 0] = math.nan, math.inf
    weight = random(12, dtype=torch.float32, seed=1)
    out = implementation_of("rms_norm", implementation)(heads, weight, 1e-5)
    assert out.is_contiguous()
    torch.testing.assert_close(out.double(), normed(heads, weight, 1e-5, 0.0), equal_nan=True)
    assert out[1, 2].isnan().all()
    assert int(out.isnan().sum()) == 12 + 1


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@each("gated_rms_norm")
def test_gated_rms_norm(implementation: str, dtype: torch.dtype, groups: int, before: bool) -> None:
    run = implementation_of("gated_rms_norm", implementation)
    for rows, width in SHAPES:
        x, gate = random(rows, 2 * width + 3, dtype=dtype, scale=3.0)[:, 3:].split(width, -1)
        weight = random(width, dtype=dtype, seed=1)
        opened = gate.double() / (1 + torch.exp(-gate.double()))
        inner = x.double() if before else x.double() * opened
        parts = zip(inner.chunk(groups, -1), weight.chunk(groups), strict=True)
        expected = torch.cat([normed(part, part_weight, 0.1, 0.0) for part, part_weight in parts], -1)
        close(run(x, gate, weight, 0.1, groups, before), expected * opened if before else expected, dtype)


def gelu_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "silu_and_mul": lambda x: x / (1 + math.exp(-x)),
    "gelu_and_mul": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh_and_mul": gelu_tanh,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("op", "implementation"), [(op, name) for op in ACTIVATIONS for name in dispatch.present()[op]]
)
def test_gated_activations(op: str, implementation: str, dtype: torch.dtype) -> None:
    run = implementation_of(op, implementation)
    for rows, width in SHAPES:
        x = random(rows, 2 * width + 6, dtype=dtype, scale=2.0)[:, : 2 * width]
        gate, up = x[:, :width].double(), x[:, width:].double()
        close(run(x), gate.apply_(ACTIVATIONS[op]) * up, dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "inner", "outer"), [(1, 8, 3), (4, 33, 17), (70, 64, 96)])
@pytest.mark.parametrize("dtype", DTYPES)
@each("linear")
def test_linear(implementation: str, dtype: torch.dtype, rows: int, inner: int, outer: int, bias: bool) -> None:
    x, weight = random(rows, inner, dtype=dtype), random(outer, inner, dtype=dtype, seed=1, scale=inner**-0.5)
    added = random(outer, dtype=dtype, seed=2) if bias else None
    expected = torch.einsum("ti,oi->to", x.double(), weight.double()) + (added.double() if bias else 0)  # type: ignore[union-attr]
    close(implementation_of("linear", implementation)(x, weight, added), expected, dtype)


@pytest.mark.skipif("triton" not in dispatch.present()["linear"], reason="needs Triton")
@pytest.mark.parametrize("by_sums", [False, True])
@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_products_of_few_rows(rows: int, split: int, by_sums: bool) -> None:
    from octavo.ops.triton.linear import Tiling, few_rows

    x, weight = random(rows, 96 + 8, dtype=torch.bfloat16)[:, :96], random(70, 96, dtype=torch.bfloat16, seed=1) / 8
    bias = random(70, dtype=torch.bfloat16, seed=2)
    run = few_rows if IS_INTERPRETED else on_gpu(few_rows)
    for added in (None, bias):
        expected = x.double() @ weight.double().T + (0 if added is None else added.double())
        close(run(x, weight, added, Tiling(by_sums, 16, 32, split, 4, 2)), expected, torch.bfloat16)


@pytest.mark.skipif("triton" not in dispatch.present()["linear"], reason="needs Triton")
def test_a_tiling_serves_up_to_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.ops.triton import linear

    few, more = (linear.Tiling(False, 16, 32, split, 4, 2) for split in (1, 3))
    monkeypatch.setitem(linear.FASTER, (70, 96), ((2, few), (4, None), (8, more)))
    found = [linear.tiling_of(rows, 70, 96) for rows in (1, 2, 3, 4, 5, 8, 9)]
    assert found == [few, few, None, None, more, more, None]
    assert linear.tiling_of(1, 96, 70) is None
    x, weight = random(6, 96, dtype=torch.bfloat16), random(70, 96, dtype=torch.bfloat16, seed=1) / 8
    close(implementation_of("linear", "triton")(x, weight), x.double() @ weight.double().T, torch.bfloat16)


def empty_cache(num_blocks: int, heads: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Strided by block, with another layer's page between two of its own."""
    return torch.zeros(num_blocks, 2, 2, 4, heads, size, dtype=dtype)[:, 1]


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16])
@each("write_kv")
def test_write_kv(implementation: str, cache_dtype: torch.dtype) -> None:
    cache = empty_cache(6, 2, 8, cache_dtype)
    qkv = random(5, 3, 2, 8, dtype=torch.float32)
    slots = torch.tensor([9, 4, 23, 10, 17])
    implementation_of("write_kv", implementation)(qkv[:, 1], qkv[:, 2], cache, slots)
    for token, slot in enumerate(slots.tolist()):
        for part in (0, 1):
            assert torch.equal(cache[slot // 4, part, slot % 4], qkv[token, part + 1].to(cache_dtype))
    written = {(slot // 4, slot % 4) for slot in slots.tolist()}
    for block in range(6):
        for offset in range(4):
            if (block, offset) not in written:
                assert not cache[block, :, offset].any()


def test_int8_keeps_a_head_to_half_a_step() -> None:
    heads = random(50, 3, 40, dtype=torch.float32) * torch.logspace(-6, 6, 50)[:, None, None]
    stored = to_cache(heads, torch.int8)
    assert stored.shape == (50, 3, 44) and stored.dtype == torch.int8
    bytes, values = as_int8(heads)
    torch.testing.assert_close(from_cache(stored, torch.float32), values, rtol=1e-6, atol=0)
    assert (stored[..., :40] == bytes[..., :40]).float().mean() > 0.999  # but where a value lies half between two
    step = heads.abs().amax(-1, keepdim=True) / 127
    assert ((from_cache(stored, torch.float32) - heads).abs() <= step * 0.5001).all()
    assert from_cache(stored, torch.bfloat16).dtype == torch.bfloat16
    assert not from_cache(to_cache(torch.full((2, 8), 1e-31), torch.int8), torch.float32).any()
    for value in (torch.inf, torch.nan):
        broken = torch.zeros(2, 8)
        broken[0, 3] = value
        found = from_cache(to_cache(broken, torch.int8), torch.float32)
        assert not found[0].isfinite().any() and not found[1].any()


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "size", "rotated"), [(1, 1, 8, 8), (4, 2, 16, 16), (3, 1, 20, 12)]
)
@pytest.mark.parametrize("dtype", DTYPES)
@each("rope_and_write")
def test_rope_and_write(
    implementation: str,
    dtype: torch.dtype,
    num_heads: int,
    num_kv_heads: int,
    size: int,
    rotated: int,
    with_norm: bool,
) -> None:
    """Rotation as multiplication of complex numbers, pair by pair."""
    tokens = 5
    fused = random(tokens, num_heads + 2 * num_kv_heads, size, dtype=dtype)
    q, k, v = fused.split((num_heads, num_kv_heads, num_kv_heads), 1)
    angles = torch.rand(12, rotated // 2, generator=torch.Generator().manual_seed(3)) * 6
    cos_sin = torch.cat((angles.cos() * 1.1, angles.sin() * 1.1), 1)
    positions, slots = torch.tensor([3, 11, 0, 7, 7]), torch.tensor([5, 6, 8, 3, 15])
    weights = [random(size, dtype=dtype, seed=seed) for seed in (4, 5)] if with_norm else [None, None]
    cache = empty_cache(4, num_kv_heads, size, dtype)

    def expected(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        x = x.double() if weight is None else normed(x, weight, 1e-3, 1.0)
        turned = torch.complex(x[..., : rotated // 2], x[..., rotated // 2 : rotated])
        turned = turned * torch.polar(torch.full_like(angles, 1.1).double(), angles.double())[positions][:, None]
        return torch.cat((turned.real, turned.imag, x[..., rotated:]), -1)

    out = implementation_of("rope_and_write", implementation)(
        q, k, v, positions, cos_sin, cache, slots, *weights, 1e-3, 1.0
    )
    close(out, expected(q, weights[0]), dtype)
    close(cache[:, 0][slots // 4, slots % 4], expected(k, weights[1]), dtype)
    assert torch.equal(cache[:, 1][slots // 4, slots % 4], v)


@pytest.mark.parametrize("op", ["write_kv", "rope_and_write"])
@pytest.mark.parametrize("implementation", [name for name in dispatch.present()["write_kv"] if name != "torch"])
def test_padding_writes_nothing(op: str, implementation: str) -> None:
    cache = empty_cache(4, 2, 8, torch.float32)
    q, k, v = random(3, 8, 8, dtype=torch.float32).split((4, 2, 2), 1)
    slots = torch.tensor([-1, 6, -1])
    run = implementation_of(op, implementation)
    if op == "write_kv":
        run(k, v, cache, slots)
    else:
        out = run(q, k, v, torch.zeros(3, dtype=torch.int64), torch.tensor([[1.0] * 4 + [0.0] * 4]), cache, slots)
        assert torch.equal(out, q)
    assert torch.equal(cache[1, 0, 2], k[1])
    assert torch.equal(cache[1, 1, 2], v[1])
    assert int(cache.count_nonzero()) == 2 * 2 * 8


BATCHES = {
    "decode": ([7, 2, 9], [1, 1, 1], 3, 3),
    "one row": ([3], [1], 1, 1),
    "mixed, padded": ([4, 0, 9], [1, 300, 7], 6, 320),
    "decode, padded": ([5, 1], [1, 1], 4, 4),
    "nothing": ([], [], 2, 2),
}


@pytest.mark.parametrize("case", BATCHES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@each("build_batch")
def test_build_batch(implementation: str, dtype: torch.dtype, case: str) -> None:
    """Against loops over rows and tokens. The third group keeps one state a row and takes no copy of its table."""
    rows, counts, padded_rows, padded_tokens = BATCHES[case]
    block_size = 4
    tokens = torch.randint(1, 1000, (10, 700), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    computed = torch.randint(0, 300, (10,), generator=torch.Generator().manual_seed(2))
    computed[rows[-1:]] = 0
    tables = [(torch.randperm(10 * width) + 1).view(10, width).int() for width in (180, 170, 1)]
    before = tokens.clone(), computed.clone()
    padding = padded_rows - len(rows)
    rows_R = torch.tensor(rows + [-1] * padding, dtype=dtype)
    counts_R = torch.tensor(counts + [0] * padding, dtype=dtype)
    junk = 77
    input_ids = torch.full((padded_tokens,), junk, dtype=dtype)
    positions, row_of_token = torch.full((padded_tokens,), junk), torch.full((padded_tokens,), junk)
    query_start = torch.full((padded_rows + 1,), junk, dtype=torch.int32)
    seq_lens = torch.full((padded_rows,), junk, dtype=torch.int32)
    slots = [torch.full((padded_tokens,), junk) for _ in tables]
    gathered = [torch.full((padded_rows, width), -junk, dtype=torch.int32) for width in (160, 200, 0)]
    implementation_of("build_batch", implementation)(
        rows_R,
        counts_R,
        tokens,
        computed,
        tables,
        block_size,
        input_ids,
        positions,
        row_of_token,
        query_start,
        seq_lens,
        slots,
        gathered,
    )
    assert torch.equal(tokens, before[0])
    token = 0
    for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
        assert query_start[place] == token
        length = int(before[1][row]) + count
        assert seq_lens[place] == length == computed[row]
        for position in range(length - count, length):
            found = input_ids[token], positions[token], row_of_token[token]
            assert found == (tokens[row, position], position, place)
            for table, group_slots in zip(tables, slots, strict=True):
                block = int(table[row, min(position // block_size, table.shape[1] - 1)])
                assert group_slots[token] == block * block_size + position % block_size
            token += 1
        for table, copy in zip(tables, gathered, strict=True):
            num_blocks = min(-(-length // block_size), table.shape[1], copy.shape[1])
            assert torch.equal(copy[place, :num_blocks], table[row, :num_blocks])
            assert (copy[place, num_blocks:] == -junk).all()
    assert (query_start[len(rows) :] == token).all()
    assert not seq_lens[len(rows) :].any()
    for buffer in (input_ids, positions):
        assert not buffer[token:].any()
    assert (row_of_token[token:] == padded_rows).all()
    for group_slots in slots:
        assert (group_slots[token:] == -1).all()
    for copy in gathered[:2]:
        assert not copy[len(rows) :, 0].any()
    others = [row for row in range(10) if row not in rows]
    assert torch.equal(computed[others], before[1][others])


@each("append_sampled")
def test_append_sampled(implementation: str) -> None:
    tokens, length = torch.zeros(6, 5, dtype=torch.int32), torch.tensor([0, 4, 2, 0, 0, 3])
    implementation_of("append_sampled", implementation)(
        torch.tensor([5, -1, 1, 0]), torch.tensor([70, 80, 90, 2**31 - 1]), tokens, length
    )
    assert length.tolist() == [1, 5, 2, 0, 0, 4]
    assert tokens.nonzero().tolist() == [[0, 0], [1, 4], [5, 3]]
    assert tokens[tokens > 0].tolist() == [2**31 - 1, 90, 70]


@pytest.mark.parametrize("dtype", DTYPES)
@each("mark_bad_rows")
def test_mark_bad_rows(implementation: str, dtype: torch.dtype) -> None:
    """One value of a token is enough, wherever it is; of padding it is not."""
    row_of_token = torch.tensor([0, 1, 1, 1, 2, 4, 5, 5])
    for place in (0, 15, 16, 40):
        for value in (math.nan, math.inf, -math.inf):
            hidden = random(8, 50, dtype=dtype)[:, 3:44]
            run = implementation_of("mark_bad_rows", implementation)
            assert run(hidden, row_of_token, 5).tolist() == [False] * 5
            hidden[2, place] = hidden[5, place] = hidden[6, place] = value
            assert run(hidden, row_of_token, 5).tolist() == [False, True, False, False, True]
    assert implementation_of("mark_bad_rows", implementation)(hidden[:0], row_of_token[:0], 2).tolist() == [False] * 2


@pytest.mark.parametrize("soft_cap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 1, 18])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "size"), [(2, 2, 8), (6, 2, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each("paged_attention")
def test_paged_attention(
    implementation: str,
    dtype: torch.dtype,
    num_heads: int,
    num_kv_heads: int,
    size: int,
    window: int | None,
    soft_cap: float | None,
) -> None:
    layout = random_layout(
        [(1, 1), (3, 3), (1, 40), (20, 50)], num_heads, num_kv_heads, size, window=window, dtype=dtype
    )
    out = implementation_of("paged_attention", implementation)(
        layout.q, layout.cache, layout.block_table, layout.query_start, layout.seq_lens, 0.3, window, soft_cap
    )
    close(out, dense_attention(layout, 0.3, window, soft_cap), dtype)


def test_every_op_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals()} | set(ACTIVATIONS) | set(test_ssm.CASES)
    tested |= set(test_sampling.OPS) | {"gated_linear_packed", "linear_packed", "rows_packed"}  # test_packed.py
    assert set(dispatch.present()) <= tested
