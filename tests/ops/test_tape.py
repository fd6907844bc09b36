"""Steps recorded on a tape do the same again on what lies at their addresses then."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("octavo._cpu", reason="the CPU kernels are not compiled")

from octavo.ops.cpu.linear import linear_packed, rows_packed
from octavo.ops.cpu.memory import Arena, empty, results_in
from octavo.ops.cpu.packing import pack_numbers
from octavo.ops.cpu.tape import Tape
from octavo.ops.packed import PackedPart, PackedWeight


def _weight(out_features: int, in_features: int, seed: int) -> tuple[PackedWeight, torch.Tensor]:
    values = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(seed)).bfloat16()
    weight = PackedWeight.empty(in_features, (PackedPart("BF16", out_features),), torch.device("cpu"))
    pack_numbers(values, weight, 0)
    return weight, values


def test_a_tape_runs_on_new_values() -> None:
    first, second = _weight(64, 32, 0), _weight(32, 64, 1)
    ids = torch.tensor([3, 5])
    tape = Tape(Arena())
    with torch.inference_mode():

        def step() -> torch.Tensor:
            x = rows_packed(ids, first[0], torch.bfloat16)
            return linear_packed(linear_packed(x, first[0]), second[0])

        recorded = tape.record(step)
        before = recorded.clone()
        assert tape.foreign is None and len(tape) == 3
        assert torch.equal(before, step())
        ids.copy_(torch.tensor([7, 0]))
        tape.run()
        assert torch.equal(recorded, step()) and not torch.equal(recorded, before)
        ids.copy_(torch.tensor([3, 5]))
        shares = tape.run_timed()
        assert torch.equal(recorded, before)
    assert {name: calls for name, (calls, _) in shares.items()} == {"embedding": 1, "linear": 2}
    assert all(0 < seconds < 1 for _, seconds in shares.values())


def test_operators_of_torch_spoil_a_tape_and_views_do_not() -> None:
    weight, _ = _weight(64, 64, 0)
    x = torch.randn(2, 64).bfloat16()
    tape = Tape(Arena())
    with torch.inference_mode():
        result = tape.record(lambda: linear_packed(linear_packed(x, weight).view(2, 4, 16).flatten(1), weight)[:1])
        assert tape.foreign is None and len(tape) == 2 and result.shape == (1, 64)
        spoilt = Tape(Arena())
        result = spoilt.record(lambda: linear_packed(x, weight) + 1)
        assert spoilt.foreign == "add" and len(spoilt) == 0
        assert torch.equal(result, linear_packed(x, weight) + 1)  # what was computed is right all the same


def test_a_step_that_fails_leaves_an_empty_tape_and_the_next_one_records() -> None:
    weight, _ = _weight(64, 64, 0)
    ids, tape = torch.tensor([64]), Tape(Arena())
    with torch.inference_mode():
        with pytest.raises(IndexError):
            tape.record(lambda: rows_packed(ids, weight, torch.bfloat16))
        assert len(tape) == 0
        ids.fill_(63)
        tape.record(lambda: rows_packed(ids, weight, torch.bfloat16))
        assert len(tape) == 1


def test_arena_memory_is_used_again_when_all_views_are_gone() -> None:
    arena = Arena(chunk_bytes=4096)
    with torch.inference_mode(), results_in(arena):
        tensor = empty((3, 5), torch.bfloat16)
        address, view = tensor.data_ptr(), tensor[1:]
        assert address % 64 == 0
        del tensor
        other = empty((3, 5), torch.bfloat16)
        assert other.data_ptr() != address
        del view
        assert empty((3, 5), torch.bfloat16).data_ptr() == address
        assert empty((0, 5), torch.float32).shape == (0, 5)
        large = empty((5000,), torch.float32)  # more than a chunk
        assert large.shape == (5000,) and arena.num_bytes == 4096 + 20032
        del large
    with torch.inference_mode(), results_in(arena):  # another tape, over the same memory
        assert empty((3, 5), torch.bfloat16).data_ptr() == address
        assert arena.num_bytes == 4096 + 20032
