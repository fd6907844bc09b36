from __future__ import annotations

import pytest
import torch

from octavo.loader.dummy import dummy_tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_values_fill_the_range(dtype: torch.dtype) -> None:
    values = dummy_tensor("w", (64, 64), dtype, scale=0.5)
    assert (values.dtype, values.shape) == (dtype, (64, 64))
    floats = values.float()
    assert -0.5 <= floats.min() < -0.45 and 0.45 < floats.max() <= 0.5
    assert abs(floats.mean()) < 0.03
    assert dummy_tensor("w", (64, 64), torch.float32).abs().max() <= 1e-3


def test_name_and_seed_decide_the_values_not_the_order() -> None:
    first = dummy_tensor("a", (32,), torch.float32, seed=1)
    dummy_tensor("b", (7,), torch.float32)
    assert torch.equal(dummy_tensor("a", (32,), torch.float32, seed=1), first)
    assert not torch.equal(dummy_tensor("b", (32,), torch.float32, seed=1), first)
    assert not torch.equal(dummy_tensor("a", (32,), torch.float32, seed=2), first)


def test_integers_and_flags() -> None:
    bytes_ = dummy_tensor("w", (4096,), torch.uint8)
    assert bytes_.dtype == torch.uint8 and bytes_.max() > 250 and bytes_.min() < 5
    assert set(dummy_tensor("w", (64,), torch.bool).tolist()) == {True, False}
