"""Products with packed weights, by the compiled kernels."""

from __future__ import annotations

import torch

from octavo import _cpu
from octavo.ops.cpu.memory import empty
from octavo.ops.packed import FORMATS, PackedWeight

NUMBER = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def linear_packed(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    num_rows, in_features = x.shape
    handle = weight.handle or _handle(weight)
    out = empty((num_rows, weight.out_features), x.dtype)
    assert in_features == weight.in_features, (x.shape, weight.in_features)
    assert x.stride(1) == 1 or num_rows == 0 or in_features == 1, x.stride()
    kind = NUMBER[x.dtype]
    if bias is None:
        handle.apply(x.data_ptr(), kind, x.stride(0), num_rows, out.data_ptr(), kind, out.stride(0), 0, 0)
    else:
        handle.apply(
            x.data_ptr(),
            kind,
            x.stride(0),
            num_rows,
            out.data_ptr(),
            kind,
            out.stride(0),
            bias.data_ptr(),
            NUMBER[bias.dtype],
        )
    return out


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
