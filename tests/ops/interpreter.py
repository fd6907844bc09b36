"""Triton's interpreter, with what it lacks for our kernels. `prepare` before the first kernel runs."""

from __future__ import annotations

from typing import Any

_prepared = False


def prepare() -> None:
    """Two gaps of it (seen in Triton 3.6) are filled. It holds scalars as arrays of shape [1], which numpy from 2.4 on
    does not take for integers: loops to a bound that is an argument, or was loaded, would fail. And it keeps bfloat16
    as 16-bit integers, which its matrix product would multiply as such. Its check of every integer sum for overflow,
    which takes half of its time, is left out."""
    global _prepared
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        return
    if _prepared:
        return
    _prepared = True
    patch: Any = interpreter._patch_lang_tensor

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor
    builder: Any = interpreter.InterpreterBuilder
    create_dot = builder.create_dot

    def dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        a, b = (x if x.dtype.scalar != tl.bfloat16 else self.create_fp_ext(x, tl.float32) for x in (a, b))
        return create_dot(self, a, b, d, *rest)

    builder.create_dot = dot
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
