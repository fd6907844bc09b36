"""Products with packed weights, by the compiled kernels."""

from __future__ import annotations

import torch

from octavo import _cpu
from octavo.ops.activation import GATED
from octavo.ops.cpu.memory import empty
from octavo.ops.packed import FORMATS, PackedWeight

NUMBER = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
CACHE_NUMBER = {**NUMBER, torch.int8: 3}
_ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}


def linear_packed(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    handle = weight.handle or _handle(weight)
    out = empty((x.shape[0], weight.out_features), x.dtype)
    handle.apply(*_places(x, weight, out, bias))
    return out


def gated_linear_packed(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    gate, up = weight.parts
    if gate != up:  # of two formats
        return GATED[activation](linear_packed(x, weight, bias))
    handle = weight.handle or _handle(weight)
    out = empty((x.shape[0], gate.out_features), x.dtype)
    handle.apply_gated(_ACTIVATIONS[activation], *_places(x, weight, out, bias))
    return out


def _places(
    x: torch.Tensor, weight: PackedWeight, out: torch.Tensor, bias: torch.Tensor | None
) -> tuple[int, int, int, int, int, int, int, int, int]:
    num_rows, in_features = x.shape
    assert in_features == weight.in_features, (x.shape, weight.in_features)
    assert x.stride(1) == 1 or num_rows == 0 or in_features == 1, x.stride()
    assert bias is None or (bias.shape[0] == weight.out_features and bias.is_contiguous()), bias.shape
    kind = NUMBER[x.dtype]
    place, bias_kind = (0, 0) if bias is None else (bias.data_ptr(), NUMBER[bias.dtype])
    return x.data_ptr(), kind, x.stride(0), num_rows, out.data_ptr(), kind, out.shape[1], place, bias_kind


def rows_packed(ids: torch.Tensor, weight: PackedWeight, dtype: torch.dtype) -> torch.Tensor:
    assert ids.dtype == torch.int64 and ids.is_contiguous(), (ids.dtype, ids.stride())
    out = empty((ids.shape[0], weight.in_features), dtype)
    (weight.handle or _handle(weight)).rows(ids.data_ptr(), ids.shape[0], out.data_ptr(), NUMBER[dtype])
    return out


def _handle(weight: PackedWeight) -> _cpu.Linear:
    parts = []
    for index, part in enumerate(weight.parts):
        data = weight.part_data(index)
        parts.append((FORMATS.index(part.format), part.out_features, data.data_ptr(), data.nbytes))
    weight.handle = _cpu.Linear(weight.in_features, parts)
    return weight.handle
