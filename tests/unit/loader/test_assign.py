from __future__ import annotations

import re

import pytest
import torch

from octavo.distributed.shard import Shard, parameter
from octavo.errors import WeightError
from octavo.loader.assign import ExpectedWeight, assign, expected_weights
from octavo.loader.weight_map import WeightMap
from tests.models.harness import TensorEntry

NAMES = WeightMap(rename={"w": "weight"}, fuse={"qkv": ("q", "k")})
CPU = torch.device("cpu")


def model() -> dict[str, torch.nn.Parameter]:
    return {
        "qkv.weight": parameter((5, 4), torch.float32, CPU, Shard((3, 2), 0)),
        "norm.weight": parameter((4,), torch.float32, CPU, Shard((4,))),
    }


def weights(**changes: torch.Tensor | None) -> list[TensorEntry]:
    tensors = {"q.w": torch.ones(3, 4), "k.w": torch.full((2, 4), 2.0), "norm.w": torch.arange(4.0)}
    tensors.update({name.replace("_", "."): tensor for name, tensor in changes.items()})
    return [TensorEntry(name, tensor) for name, tensor in tensors.items() if tensor is not None]


def test_each_tensor_goes_to_its_part() -> None:
    parameters = model()
    assign(parameters, NAMES, reversed(weights()))
    assert parameters["qkv.weight"][:, 0].tolist() == [1, 1, 1, 2, 2]
    assert parameters["norm.weight"].tolist() == [0, 1, 2, 3]


def test_a_fused_tensor_fills_all_parts() -> None:
    parameters = model()
    fused = torch.arange(20.0).view(5, 4)
    assign(parameters, NAMES, weights(q_w=None, k_w=None, qkv_w=fused))
    assert torch.equal(parameters["qkv.weight"], fused)


def test_expected_weights() -> None:
    assert list(expected_weights(model(), NAMES)) == [
        ExpectedWeight("q.w", (3, 4), torch.float32),
        ExpectedWeight("k.w", (2, 4), torch.float32),
        ExpectedWeight("norm.w", (4,), torch.float32),
    ]


def test_a_wrong_shape_names_the_tensor_and_both_shapes_before_reading() -> None:
    class Unreadable(TensorEntry):
        def read(self) -> torch.Tensor:
            raise AssertionError("read")

    expected = re.escape("tensor 'k.w' has shape [3, 4], the model expects [2, 4]")
    with pytest.raises(WeightError, match=expected):
        assign(model(), NAMES, [Unreadable("k.w", torch.zeros(3, 4))])
    with pytest.raises(WeightError, match=re.escape("'norm.w' has shape [4, 1], the model expects [4]")):
        assign(model(), NAMES, weights(norm_w=torch.zeros(4, 1)))


def test_missing_and_unexpected_tensors_are_listed() -> None:
    with pytest.raises(WeightError, match=r"1 missing: k\.w; 1 that the model has no place for: extra\.w"):
        assign(model(), NAMES, weights(k_w=None, extra_w=torch.zeros(1)))


def test_a_long_list_is_cut() -> None:
    many = {f"n{i}.weight": parameter((1,), torch.float32, CPU, Shard((1,))) for i in range(20)}
    with pytest.raises(WeightError, match=r"20 missing: n0\.w, .*n7\.w and 12 more"):
        assign(many, NAMES, [])


def test_two_tensors_for_one_place_are_refused() -> None:
    with pytest.raises(WeightError, match=r"'q\.weight' goes to a place that another"):
        assign(model(), NAMES, [*weights(), TensorEntry("q.weight", torch.zeros(3, 4))])


def test_a_fused_tensor_after_a_part_is_refused() -> None:
    with pytest.raises(WeightError, match=r"'qkv\.w' goes to a place that another"):
        assign(model(), NAMES, [*weights(), TensorEntry("qkv.w", torch.zeros(5, 4))])
