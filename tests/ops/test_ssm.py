"""The recurrent ops of every implementation against plain float64 recurrences, one row and one token at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from octavo.ops import dispatch
from octavo.ops.state_rows import StateRows
from octavo.ops.torch import ssm as in_torch
from tests.ops.on_device import IS_INTERPRETED, implementation_of

# tokens of each row of a step: decode, drafts, prompts, whole and broken chunks, and all of them together
LENGTHS = [[1], [1] * 5, [7], [5, 1, 3, 2], [64, 128], [65], [16, 17, 15], [40, 1, 130, 1, 2, 64, 9, 1, 17]]
SIZES = [(12, 1, 3, 5), (6, 2, 8, 16), (4, 4, 4, 8)]  # heads, groups, head size, state size; channels are heads * size
FEW = [
    ([1] * 3, SIZES[1]),
    ([9, 1], SIZES[0]),
    ([5, 1, 3, 2], SIZES[1]),
    ([2, 40], SIZES[2]),
]  # for kernels in Triton's interpreter
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
BLOCKS = 12

Run = Callable[..., tuple[Tensor, Tensor | None]]


@dataclass
class Case:
    """The inputs of an op, and what it must compute: (y, states after each token) of one row from its state."""

    inputs: list[Tensor]  # by token
    state_shape: tuple[int, ...]
    reference: Callable[[list[Tensor], Tensor], tuple[Tensor, Tensor]]
    run: Callable[[Run, list[Tensor], Tensor, StateRows, bool], tuple[Tensor, Tensor | None]]


class Draw:
    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def decay(self, *shape: int) -> Tensor:
        """A, from one that hardly fades to one that forgets at once."""
        return -torch.exp(torch.rand(*shape, generator=self.generator) * 9 - 6)


def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def fused(draw: Draw, num_tokens: int, *sizes: int) -> list[Tensor]:
    """Views of one projection, as layers have them."""
    return list(draw.normal(num_tokens, sum(sizes) + 3)[:, 3:].split(sizes, -1))


def conv_case(draw: Draw, num_tokens: int, size: tuple[int, int, int, int], dtype: torch.dtype) -> Case:
    channels, width = size[0] * size[2], size[3] // 2 + 1
    inputs = [part.to(dtype) for part in fused(draw, num_tokens, channels)]
    weight, bias = draw.normal(channels, width).to(dtype), draw.normal(channels).to(dtype)

    def reference(inputs: list[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, states = [], []
        for x in inputs[0]:
            window = torch.cat((state, x[:, None]), 1)
            total = (window * weight.double()).sum(1) + bias.double()
            outputs.append(total * torch.sigmoid(total))
            states.append(state := window[:, 1:])
        return torch.stack(outputs), torch.stack(states)

    def run(op: Run, inputs: list[Tensor], states: Tensor, rows: StateRows, each: bool) -> tuple[Tensor, Tensor | None]:
        return op(inputs[0], weight, bias, states, rows, True, each)

    return Case(inputs, (channels, width - 1), reference, run)


def scan_case(draw: Draw, num_tokens: int, size: tuple[int, int, int, int], dtype: torch.dtype) -> Case:
    channels, state_size = size[0] * size[2], size[3]
    inputs = fused(draw, num_tokens, channels, channels, state_size, state_size, channels)
    inputs = [part.to(dtype) for part in inputs]  # x, dt, B, C, gate
    A, D = draw.decay(channels, state_size), draw.normal(channels)

    def reference(inputs: list[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, states = [], []
        for x, dt, B, C, gate in zip(*inputs, strict=True):
            delta = softplus(dt)
            state = torch.exp(delta[:, None] * A.double()) * state + (delta * x)[:, None] * B
            outputs.append((state @ C + D.double() * x) * gate * torch.sigmoid(gate))
            states.append(state)
        return torch.stack(outputs), torch.stack(states)

    def run(op: Run, inputs: list[Tensor], states: Tensor, rows: StateRows, each: bool) -> tuple[Tensor, Tensor | None]:
        x, dt, B, C, gate = inputs
        return op(x, dt, A, B, C, D, gate, states, rows, each)

    return Case(inputs, (channels, state_size), reference, run)


def ssd_case(draw: Draw, num_tokens: int, size: tuple[int, int, int, int], dtype: torch.dtype) -> Case:
    heads, groups, head_dim, state_size = size
    sizes = (heads * head_dim, heads, groups * state_size, groups * state_size)
    x, dt, B, C = (part.to(dtype) for part in fused(draw, num_tokens, *sizes))
    B, C = B.unflatten(-1, (groups, state_size)), C.unflatten(-1, (groups, state_size))
    A, D, dt_bias = draw.decay(heads), draw.normal(heads), draw.normal(heads)
    limit = (0.0, float("inf")) if heads == 12 else (0.3, 1.1)

    def reference(inputs: list[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, states = [], []
        for x, dt, B, C in zip(*inputs, strict=True):
            delta = softplus(dt + dt_bias.double()).clamp(*limit)
            y, after = torch.empty_like(x), torch.empty_like(state)
            for h in range(heads):
                g = h // (heads // groups)
                after[h] = torch.exp(delta[h] * A[h].double()) * state[h] + delta[h] * torch.outer(x[h], B[g])
                y[h] = after[h] @ C[g] + D[h].double() * x[h]
            outputs.append(y)
            states.append(state := after)
        return torch.stack(outputs), torch.stack(states)

    def run(op: Run, inputs: list[Tensor], states: Tensor, rows: StateRows, each: bool) -> tuple[Tensor, Tensor | None]:
        x, dt, B, C = inputs
        return op(x, dt, dt_bias, limit, A, B, C, D, states, rows, each)

    inputs = [x.unflatten(-1, (heads, head_dim)), dt, B, C]
    return Case(inputs, (heads, head_dim, state_size), reference, run)


CASES = {"causal_conv1d": conv_case, "selective_scan": scan_case, "ssd": ssd_case}
IMPLEMENTED = [(op, name) for op in CASES for name in dispatch.present()[op]]
every_op = pytest.mark.parametrize(("op", "implementation"), IMPLEMENTED)


def is_slow(implementation: str) -> bool:
    return IS_INTERPRETED and implementation != dispatch.SPECIFICATION


TABLE = [
    (op, implementation, lengths, size)
    for op, implementation in IMPLEMENTED
    for lengths, size in (
        FEW if is_slow(implementation) else [(lengths, size) for lengths in LENGTHS for size in SIZES]
    )
]


def make_states(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Blocks strided by what lies between them."""
    return draw.normal(BLOCKS, 2, *shape).to(dtype)[:, 1]


def make_rows(draw: Draw, lengths: list[int], fresh: Tensor | None) -> StateRows:
    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    blocks = torch.randperm(BLOCKS - 1, generator=draw.generator)[: len(lengths)] + 1
    return StateRows(blocks, fresh, starts, lengths)


def expected_of(case: Case, states: Tensor, rows: StateRows) -> tuple[Tensor, Tensor, Tensor]:
    """(y, states after each token, states in the end), all float64."""
    outputs, each, final = [], [], states.double()
    split = [part.double().split(rows.query_lens) for part in case.inputs]
    for row, block in enumerate(rows.blocks.tolist()):
        is_fresh = rows.fresh is not None and bool(rows.fresh[row])
        before = torch.zeros(case.state_shape, dtype=torch.float64) if is_fresh else states[block].double()
        y, after = case.reference([part[row] for part in split], before)
        outputs.append(y)
        each.append(after)
        final[block] = after[-1]
    return torch.cat(outputs), torch.cat(each), final


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(("op", "implementation", "lengths", "size"), TABLE, ids=str)
def test_equals_the_recurrence(op: str, implementation: str, lengths: list[int], size: tuple[int, ...]) -> None:
    """Blocks of fresh rows hold NaN; blocks of nobody stay as they are."""
    draw = Draw(sum(lengths))
    case = CASES[op](draw, sum(lengths), size, torch.float32)
    states = make_states(draw, case.state_shape, torch.float32)
    fresh = torch.arange(len(lengths)) % 3 == 1
    rows = make_rows(draw, lengths, fresh if fresh.any() else None)
    expected, _, final = expected_of(case, states, rows)
    states[rows.blocks[fresh]] = float("nan")
    before = states.clone()
    kept = [part.clone() for part in case.inputs]
    y, each = case.run(implementation_of(op, implementation), case.inputs, states, rows, False)
    close(y, expected, torch.float32)
    assert y.is_contiguous() and each is None
    close(states[rows.blocks], final[rows.blocks], torch.float32)
    others = [block for block in range(BLOCKS) if block not in rows.blocks.tolist()]
    assert torch.equal(states[others], before[others])
    assert all(map(torch.equal, case.inputs, kept))


@pytest.mark.parametrize("lengths", [[1] * 5, [7], [5, 1, 3, 2]], ids=str)
@every_op
def test_states_after_each_token(op: str, implementation: str, lengths: list[int]) -> None:
    draw = Draw(1)
    case = CASES[op](draw, sum(lengths), SIZES[1], torch.float32)
    states = make_states(draw, case.state_shape, torch.float32)
    rows = make_rows(draw, lengths, None)
    expected, expected_each, final = expected_of(case, states, rows)
    y, each = case.run(implementation_of(op, implementation), case.inputs, states, rows, True)
    close(y, expected, torch.float32)
    close(each, expected_each, torch.float32)
    close(states, final, torch.float32)


@every_op
def test_narrow_types(op: str, implementation: str) -> None:
    """Inputs and states in bfloat16: arithmetic is float32, so only results are rounded."""
    draw, lengths = Draw(2), [40, 1, 3]
    is_rounded_inside = op == "ssd" and implementation == "triton"  # what the products of long rows take
    case = CASES[op](draw, sum(lengths), SIZES[1], torch.bfloat16)
    states = make_states(draw, case.state_shape, torch.bfloat16)
    rows = make_rows(draw, lengths, None)
    expected, _, final = expected_of(case, states, rows)
    y, _ = case.run(implementation_of(op, implementation), case.inputs, states, rows, False)
    exact = expected.to(torch.bfloat16)
    if is_rounded_inside:
        for found, wanted in ((y, expected), (states, final)):
            rounding = (wanted.to(torch.bfloat16).double() - wanted).square().mean().sqrt()
            assert (found.double() - wanted).square().mean().sqrt() < 2 * rounding
        return
    close(y, expected, torch.bfloat16)
    close(states, final, torch.bfloat16)
    assert (y == exact).float().mean() > 0.99, "more than one rounding"


@pytest.mark.parametrize("cut", [1, 7, 64])
@every_op
def test_a_cut_changes_only_rounding(op: str, implementation: str, cut: int) -> None:
    if is_slow(implementation) and cut != 7:
        pytest.skip("one cut is enough for the interpreter")
    draw, num_tokens = Draw(3), 45 if is_slow(implementation) else 150
    case = CASES[op](draw, num_tokens, SIZES[1], torch.float32)
    function = implementation_of(op, implementation)
    results = []
    for step in (num_tokens, cut):
        states = make_states(Draw(4), case.state_shape, torch.float32)
        parts = []
        for first in range(0, num_tokens, step):
            tokens = [part[first : first + step] for part in case.inputs]
            rows = StateRows(torch.tensor([5]), None, torch.tensor([0, len(tokens[0])]), [len(tokens[0])])
            parts.append(case.run(function, tokens, states, rows, False)[0])
        results.append((torch.cat(parts), states))
    for whole, parted in zip(*results, strict=True):
        torch.testing.assert_close(parted, whole, atol=2e-6 * float(whole.abs().max()), rtol=0)


@pytest.mark.parametrize("implementation", dispatch.present()["ssd"])
def test_tokens_that_forget_all_do_not_blur_those_after_them(implementation: str) -> None:
    """Time steps so long that the sum of a chunk's exponents has no digits left for the short ones."""
    draw = Draw(6)
    case = ssd_case(draw, 60, SIZES[0], torch.float32)
    case.inputs[1][:30] += 3000.0
    states = make_states(draw, case.state_shape, torch.float32)
    expected, _ = case.reference([part.double() for part in case.inputs], states[3].double())
    rows = StateRows(torch.tensor([3]), None, torch.tensor([0, 60]), [60])
    y, _ = case.run(implementation_of("ssd", implementation), case.inputs, states, rows, False)
    for after in (slice(0, 30), slice(45, 60)):
        scale = expected[after].abs().amax((0, 2), keepdim=True)  # of each head
        assert ((y[after] - expected[after]).abs() < 2e-5 * scale).all()


@pytest.mark.parametrize("lengths", [[1, 1, 1], [3, 2, 4], [40, 20, 70]], ids=str)
@every_op
def test_a_row_of_nan_leaves_its_neighbours_alone(op: str, implementation: str, lengths: list[int]) -> None:
    if is_slow(implementation):
        lengths = [min(length, 9) for length in lengths]
    draw = Draw(5)
    case = CASES[op](draw, sum(lengths), SIZES[1], torch.float32)
    for part in case.inputs:
        part[: lengths[0]] = float("nan")
    states = make_states(draw, case.state_shape, torch.float32)
    rows = make_rows(draw, lengths, None)
    y, _ = case.run(implementation_of(op, implementation), case.inputs, states, rows, False)
    assert y[: lengths[0]].isnan().all()
    assert y[lengths[0] :].isfinite().all()
    assert states[rows.blocks[1:]].isfinite().all()


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("constant", "value"), [("WALK_VALUES", 2000), ("LARGE", 1)])
@pytest.mark.parametrize("op", ["selective_scan", "ssd"])
def test_sizes_that_choose_a_way(
    monkeypatch: pytest.MonkeyPatch, op: str, constant: str, value: int, lengths: list[int]
) -> None:
    """A walk in several parts, and states large enough to be changed where they lie, with the sizes of tests."""
    monkeypatch.setattr(in_torch, constant, value)
    test_equals_the_recurrence(op, "torch", lengths, SIZES[1])
    test_states_after_each_token(op, "torch", [9, 30, 1])
