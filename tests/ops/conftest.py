"""Without a GPU, Triton's kernels run in its interpreter. That has to be said before triton is imported."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    language = sys.modules.get("triton.language")
    if language is not None and type(language.cdiv).__name__ != "InterpretedFunction":
        raise RuntimeError("triton was imported before tests/ops: run with TRITON_INTERPRET=1 in the environment")


def _mend_the_interpreter() -> None:
    """It looks through the whole language at each call of a function, which takes it a millisecond (once is enough),
    checks every integer sum for overflow (random numbers are meant to wrap), cuts bfloat16 off where devices round,
    cannot count to a number that a sum made, and takes a comparison of floats for a float."""
    try:
        from triton.language import bfloat16, float32, int1, standard
        from triton.runtime import interpreter
    except ImportError:
        return
    if not isinstance(standard.sum, interpreter.InterpretedFunction):
        return
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    plain_patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor: Any, scope: Any) -> None:
        plain_patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    plain_cast = interpreter.InterpreterBuilder.cast_impl

    def cast(self: Any, source: Any, target: Any) -> Any:
        pair = source.dtype.scalar, target.scalar
        if pair == (float32, bfloat16):
            rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.int16)
            return interpreter.TensorHandle(rounded.numpy().view(np.uint16), bfloat16)
        if pair == (bfloat16, float32):
            wide = source.data.astype(np.uint32) << np.uint32(16)
            return interpreter.TensorHandle(wide.view(np.float32), float32)
        return plain_cast(self, source, target)

    plain_splat = interpreter.InterpreterBuilder.create_splat

    def splat(self: Any, target: Any, source: Any) -> Any:
        if source.data.dtype == bool:
            source = interpreter.TensorHandle(source.data, int1)
        return plain_splat(self, target, source)

    interpreter.InterpreterBuilder.create_splat = splat
    interpreter._patch_lang_tensor = patch_tensor
    interpreter.InterpretedFunction.__call__ = call
    interpreter.InterpreterBuilder.cast_impl = cast
    interpreter._patch_lang(standard.sum.fn)


_mend_the_interpreter()


@pytest.fixture(autouse=True)
def _arithmetic_as_on_a_device() -> Iterator[None]:
    """The interpreter computes in numpy, which warns of infinities and NaN that kernels mean to have."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        yield
