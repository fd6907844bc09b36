"""Triton's interpreter, with what it lacks for our kernels. `prepare` before the first kernel runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

_prepared = False


def prepare() -> None:
    """It looks through the whole language at each call of a function, which takes it a millisecond (once is enough),
    checks every integer sum for overflow (random numbers are meant to wrap), cuts bfloat16 off where devices round and
    multiplies its bits as integers, holds scalars as arrays of shape [1], which numpy from 2.4 on does not take for
    integers, and takes a comparison of floats for a float. Seen in Triton 3.6."""
    global _prepared
    try:
        from triton.language import bfloat16, float32, int1, standard
        from triton.runtime import interpreter
    except ImportError:
        return
    if _prepared or not isinstance(standard.sum, interpreter.InterpretedFunction):
        return
    _prepared = True
    builder: Any = interpreter.InterpreterBuilder
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    plain_patch: Any = interpreter._patch_lang_tensor

    def patch_tensor(tensor: Any, scope: Any) -> None:
        plain_patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    plain_cast = builder.cast_impl

    def cast(self: Any, source: Any, target: Any) -> Any:
        pair = source.dtype.scalar, target.scalar
        if pair == (float32, bfloat16):
            rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.int16)
            return interpreter.TensorHandle(rounded.numpy().view(np.uint16), bfloat16)
        if pair == (bfloat16, float32):
            wide = source.data.astype(np.uint32) << np.uint32(16)
            return interpreter.TensorHandle(wide.view(np.float32), float32)
        return plain_cast(self, source, target)

    plain_splat = builder.create_splat

    def splat(self: Any, target: Any, source: Any) -> Any:
        if source.data.dtype == bool:
            source = interpreter.TensorHandle(source.data, int1)
        return plain_splat(self, target, source)

    plain_dot = builder.create_dot

    def dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        a, b = (x if x.dtype.scalar != bfloat16 else self.create_fp_ext(x, float32) for x in (a, b))
        return plain_dot(self, a, b, d, *rest)

    builder.create_splat, builder.create_dot, builder.cast_impl = splat, dot, cast
    interpreter._patch_lang_tensor = patch_tensor
    interpreter.InterpretedFunction.__call__ = call
    interpreter._patch_lang(standard.sum.fn)
