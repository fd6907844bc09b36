"""Implementations that need a GPU, called with tensors of the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from octavo.ops import dispatch
from octavo.ops.state_rows import StateRows

IS_INTERPRETED = not torch.cuda.is_available()
ON_HOST = (dispatch.SPECIFICATION, "cpu")  # implementations that neither need a GPU nor an interpreter


def implementation_of(op: str, implementation: str) -> Callable[..., Any]:
    """One function of the op table. With a GPU, arguments of all but those on the host go there, storage by storage, so
    that views stay views, and come back with what was written to them, as do the results."""
    function = dispatch.implementation_of(op, implementation)
    return function if IS_INTERPRETED or implementation in ON_HOST else on_gpu(function)


def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        moved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

        def there(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(there(part) for part in value)
            if isinstance(value, StateRows):
                return StateRows(there(value.blocks), there(value.fresh), there(value.query_start), value.query_lens)
            if not isinstance(value, torch.Tensor):
                return value
            storage = value.untyped_storage()
            key = storage.data_ptr() or id(storage)
            if key not in moved:
                moved[key] = storage, storage.cuda()
            empty = torch.empty(0, dtype=value.dtype, device="cuda")
            return empty.set_(moved[key][1], value.storage_offset(), value.shape, value.stride())

        def back(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(back(part) for part in value)
            return value.cpu() if isinstance(value, torch.Tensor) else value

        out = back(function(*there(list(args)), **{name: there(value) for name, value in kwargs.items()}))
        for here, copy in moved.values():
            here.copy_(copy)
        return out

    return call
