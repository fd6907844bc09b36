"""The recurrent kernels of Triton against the specification, where shapes and padding matter to them alone: on a GPU if
there is one, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from octavo.ops.dispatch import implementation_of
from octavo.ops.state_rows import RowBounds, StateRows, row_bounds
from octavo.ops.triton import ssm_chunks, ssm_dual

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MIXED = [1, 70, 1, 3, 6]  # one token, several chunks, one token, a short row, one broken chunk
Step = Callable[[str, list[Tensor], Tensor, StateRows], Tensor]


@dataclass
class Op:
    """`run(implementation, inputs, states, rows)` gives y; inputs are by token."""

    inputs: list[Tensor]
    state_shape: tuple[int, ...]
    run: Step


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def conv_op(num_tokens: int, channels: int = 300, width: int = 4, dtype: torch.dtype = torch.float32) -> Op:
    weight, bias = normal(channels, width, dtype=dtype, seed=1), normal(channels, dtype=dtype, seed=2)
    x = normal(num_tokens, channels + 5, dtype=dtype)[:, 5:]

    def run(name: str, inputs: list[Tensor], states: Tensor, rows: StateRows) -> Tensor:
        return implementation_of("causal_conv1d", name)(inputs[0], weight, bias, states, rows)[0]

    return Op([x], (channels, width - 1), run)


def scan_op(num_tokens: int, channels: int = 40, size: int = 16, dtype: torch.dtype = torch.float32) -> Op:
    sizes = (channels, channels, channels, size, size)
    inputs = list(normal(num_tokens, sum(sizes), dtype=dtype).split(sizes, -1))  # x, dt, gate, B, C
    A, D = -torch.exp(normal(channels, size, seed=1)), normal(channels, seed=2)

    def run(name: str, inputs: list[Tensor], states: Tensor, rows: StateRows) -> Tensor:
        x, dt, gate, B, C = inputs
        return implementation_of("selective_scan", name)(x, dt, A, B, C, D, gate, states, rows)[0]

    return Op(inputs, (channels, size), run)


def ssd_op(
    num_tokens: int,
    heads: int = 2,
    groups: int = 1,
    head_dim: int = 64,
    size: int = 16,
    dtype: torch.dtype = torch.float32,
) -> Op:
    sizes = (heads * head_dim, heads, groups * size, groups * size)
    x, dt, B, C = normal(num_tokens, sum(sizes) + 3, dtype=dtype)[:, 3:].split(sizes, -1)
    inputs = [x.unflatten(-1, (heads, head_dim)), dt, *(part.unflatten(-1, (groups, size)) for part in (B, C))]
    A, D, bias = -torch.exp(normal(heads, seed=1)), normal(heads, seed=2), normal(heads, seed=3) - 2

    def run(name: str, inputs: list[Tensor], states: Tensor, rows: StateRows) -> Tensor:
        x, dt, B, C = inputs
        return implementation_of("ssd", name)(x, dt, bias, (0.0, 4.0), A, B, C, D, states, rows)[0]

    return Op(inputs, (heads, head_dim, size), run)


OPS: dict[str, Callable[..., Op]] = {"causal_conv1d": conv_op, "selective_scan": scan_op, "ssd": ssd_op}


def states_of(op: Op, num_blocks: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Blocks strided by what lies between them."""
    return normal(num_blocks, 2, *op.state_shape, dtype=dtype, seed=7)[:, 1]


def rows_of(lengths: list[int], fresh: list[int] | None = None) -> StateRows:
    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=DEVICE)
    blocks = torch.arange(len(lengths), 0, -1, device=DEVICE)
    is_fresh = None if fresh is None else torch.tensor([row in fresh for row in range(len(lengths))], device=DEVICE)
    return StateRows(blocks, is_fresh, starts, lengths)


def root_mean_square(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


def rounding_of(values: Tensor) -> float:
    """The error of the same in bfloat16; at least float32's, for values that bfloat16 has."""
    return max(root_mean_square(values.bfloat16().float() - values), 1e-7 * root_mean_square(values))


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """`tolerance` is of the root mean square, as errors of sums are."""
    scale = root_mean_square(expected)
    torch.testing.assert_close(found.double(), expected.double(), atol=tolerance * scale, rtol=tolerance)


SHAPES: list[tuple[str, dict[str, Any], list[int]]] = [
    ("ssd", {"size": 16}, MIXED),
    ("ssd", {"size": 64, "head_dim": 24, "heads": 4, "groups": 2}, [9, 1]),
    ("ssd", {"size": 128}, [34, 2]),
    ("ssd", {"size": 128, "heads": 1}, [1, 1, 1]),
    ("selective_scan", {"channels": 70, "size": 6}, [1, 5, 2]),
    ("causal_conv1d", {}, MIXED),
    ("causal_conv1d", {"width": 2}, [1, 2, 40]),
]


@pytest.mark.parametrize(
    ("dtype", "state_dtype"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)],
)
@pytest.mark.parametrize(("name", "sizes", "lengths"), SHAPES, ids=str)
def test_equals_the_specification(
    name: str, sizes: dict[str, int], lengths: list[int], dtype: torch.dtype, state_dtype: torch.dtype
) -> None:
    """bfloat16: from the same inputs in float32, at most twice the error that rounding the result makes, or a state."""
    op = OPS[name](sum(lengths), **sizes, dtype=dtype)
    states, rows = states_of(op, len(lengths) + 2, state_dtype), rows_of(lengths, fresh=[1])
    expected_states = states.float().clone()
    inputs = [part.float() for part in op.inputs]
    expected = op.run("torch", inputs, expected_states, rows)
    untouched = states[[0, len(lengths) + 1]].clone()
    y = op.run("triton", op.inputs, states, rows_of(lengths, fresh=[1]))
    assert y.dtype == dtype and y.is_contiguous()
    assert torch.equal(states[[0, len(lengths) + 1]], untouched)
    for found, wanted in ((y, expected), (states[rows.blocks], expected_states[rows.blocks])):
        if torch.float32 == dtype == state_dtype:
            close(found, wanted, 2e-5)
        else:
            assert root_mean_square(found.float() - wanted) <= 2 * rounding_of(wanted)


def test_large_sizes_of_bfloat16_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles of channels and of the state, keys by halves, several heads a program."""
    config = ssm_chunks.ChunkConfig(32, 16, 16, 16, True, "ieee")
    monkeypatch.setattr(ssm_dual, "chunk_config", lambda dtype, shared_bytes: config)
    monkeypatch.setattr(ssm_chunks, "SHARED_HEADS", 1)
    lengths = [37, 5]
    op = ssd_op(42, heads=4, groups=2, head_dim=32, size=24, dtype=torch.bfloat16)
    states, expected_states = (states_of(op, 3) for _ in range(2))
    expected = op.run("torch", [part.float() for part in op.inputs], expected_states, rows_of(lengths))
    y = op.run("triton", op.inputs, states, rows_of(lengths))
    assert root_mean_square(y.float() - expected) < 2 * rounding_of(expected)
    close(states, expected_states, 1e-2)


def padded(op: Op, lengths: list[int], num_rows: int, num_tokens: int) -> tuple[list[Tensor], StateRows]:
    """The step among more rows and tokens: rows of padding have no tokens and block 0, its tokens are NaN."""
    inputs = []
    for part in op.inputs:
        whole = torch.full((num_tokens, *part.shape[1:]), torch.nan, dtype=part.dtype, device=DEVICE)
        whole[: len(part)] = part
        inputs.append(whole)
    rows = rows_of(lengths + [0] * (num_rows - len(lengths)), fresh=list(range(len(lengths), num_rows)))
    rows.blocks[: len(lengths)] = rows_of(lengths).blocks
    rows.blocks[len(lengths) :] = 0
    return inputs, rows


@pytest.mark.parametrize(
    ("lengths", "num_rows", "num_tokens"), [([1, 1, 1], 4, 4), ([1, 3, 11], 5, 24), ([7], 1, 8)], ids=str
)
@pytest.mark.parametrize("name", OPS)
def test_padding_is_left_alone(name: str, lengths: list[int], num_rows: int, num_tokens: int) -> None:
    op = OPS[name](sum(lengths))
    states, plain_states = (states_of(op, len(lengths) + 2) for _ in range(2))
    expected = op.run("triton", op.inputs, plain_states, rows_of(lengths))
    inputs, rows = padded(op, lengths, num_rows, num_tokens)
    y = op.run("triton", inputs, states, rows)
    assert len(y) == num_tokens
    close(y[: len(expected)], expected, 1e-6)
    close(states, plain_states, 1e-6)
    assert torch.equal(states[0], states_of(op, len(lengths) + 2)[0])


@pytest.mark.parametrize("name", OPS)
def test_steps_of_equal_bounds_differ_in_tensors_alone(name: str) -> None:
    """A captured graph is launched for one step, and replayed with the tensors of another."""
    captured, lengths = [1, 2, 1, 33, 4], [7, 1, 6, 0, 0]
    assert row_bounds(captured) == row_bounds(lengths)
    op = OPS[name](41)
    states, expected_states = (states_of(op, 6) for _ in range(2))
    real = [part[: sum(lengths)] for part in op.inputs]
    alone = rows_of(lengths[:3], fresh=[0])
    alone.blocks += 2
    expected = op.run("torch", real, expected_states, alone)
    rows = rows_of(lengths, fresh=[0])
    rows.query_lens = captured
    y = op.run("triton", op.inputs, states, rows)
    close(y[: len(expected)], expected, 2e-5)
    close(states, expected_states, 2e-5)


def test_a_row_is_cut_where_its_own_tokens_are() -> None:
    """A long row's result is the same to the bit whoever stands before it."""
    results = []
    whole = ssd_op(52)
    for before in ([], [11, 1]):
        first = 12 - sum(before)
        inputs = [part[first:] for part in whole.inputs]
        rows, states = rows_of([*before, 40]), states_of(whole, 5)
        rows.blocks[-1] = 4
        y = whole.run("triton", inputs, states, rows)
        results.append((y[-40:], states[4]))
    assert all(map(torch.equal, *results))


def test_bounds_are_shared_by_many_steps() -> None:
    assert row_bounds([1, 1, 0]) == RowBounds(True, 0)
    assert row_bounds([1, 4, 2]) == RowBounds(False, 0)
    assert row_bounds([5] + [1] * 20) == row_bounds([9] * 8 + [3] * 13) == RowBounds(False, 8)
    assert row_bounds([5] * 9 + [1] * 50) == RowBounds(False, 32)
    assert row_bounds([5, 7]) == RowBounds(False, 2)
    assert row_bounds([9] * 200) == RowBounds(False, 200)
