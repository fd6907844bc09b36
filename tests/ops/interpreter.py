"""Triton's interpreter, with what it lacks for our kernels. `prepare` before the first kernel runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

_prepared = False


def prepare() -> None:
    """Gaps of it (seen in Triton 3.6) are filled:

    * Scalars are arrays of shape [1], which numpy from 2.4 on does not take for integers: loops to a bound that is an
      argument, was loaded or summed would fail.
    * bfloat16 is kept as 16-bit integers: its matrix product would multiply them as such, and rounding to it cuts off.
    * A comparison of floats that is broadcast is taken for floats.

    And it is made faster: it looks through the whole language at each call of a function, which takes a millisecond,
    checks every integer sum for overflow (random numbers are meant to wrap), and makes the type of every value anew.
    """
    global _prepared
    try:
        import triton.language as tl
        from triton.language import standard
        from triton.runtime import interpreter
    except ImportError:
        return
    if not isinstance(standard.sum, interpreter.InterpretedFunction):
        if not torch.cuda.is_available():
            raise RuntimeError("triton was imported before tests/ops: set TRITON_INTERPRET=1 in the environment")
        return
    if _prepared:
        return
    _prepared = True
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    patch: Any = interpreter._patch_lang_tensor

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor
    interpreter._patch_lang(standard.sum.fn)  # of the functions that call the language's core; a launch does the rest

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    interpreter.InterpretedFunction.__call__ = call
    builder: Any = interpreter.InterpreterBuilder
    plain_cast, plain_splat, plain_dot = builder.cast_impl, builder.create_splat, builder.create_dot

    def cast(self: Any, source: Any, target: Any) -> Any:
        pair = source.dtype.scalar, target.scalar
        if pair == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.int16)
            return interpreter.TensorHandle(rounded.numpy().view(np.uint16), tl.bfloat16)
        if pair == (tl.bfloat16, tl.float32):
            wide = source.data.astype(np.uint32) << np.uint32(16)
            return interpreter.TensorHandle(wide.view(np.float32), tl.float32)
        return plain_cast(self, source, target)

    def splat(self: Any, target: Any, source: Any) -> Any:
        if source.data.dtype == bool:
            source = interpreter.TensorHandle(source.data, tl.int1)
        return plain_splat(self, target, source)

    def dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        a, b = (x if x.dtype.scalar != tl.bfloat16 else cast(self, x, tl.float32) for x in (a, b))
        return plain_dot(self, a, b, d, *rest)

    builder.cast_impl, builder.create_splat, builder.create_dot = cast, splat, dot
    _remember_types(tl.core, interpreter)


def _remember_types(core: Any, interpreter: Any) -> None:
    """Equal types share what they are made of, which nobody changes; and the common cases of what is called most."""
    block_fields: dict[Any, dict[str, Any]] = {}
    tensor_shapes: dict[Any, tuple[Any, Any]] = {}
    numpy_types: dict[str, Any] = {}
    make_block, numpy_type = core.block_type.__init__, interpreter._get_np_dtype

    def init_block(self: Any, element_ty: Any, shape: Any) -> None:
        key = element_ty.name, *(getattr(size, "value", size) for size in shape)
        if key not in block_fields:
            make_block(self, element_ty, shape)
            block_fields[key] = self.__dict__
        self.__dict__ = block_fields[key]

    def init_tensor(self: Any, handle: Any, type: Any) -> None:
        is_block = type.is_block()
        key = tuple(type.shape.values) if is_block else ()
        if key not in tensor_shapes:
            shape = core.tuple([core.constexpr(size) for size in key])
            tensor_shapes[key] = shape, core.constexpr(math.prod(key))
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = tensor_shapes[key]

    def numpy_type_of(triton_type: Any) -> Any:
        name = triton_type.name
        if name not in numpy_types:
            numpy_types[name] = numpy_type(triton_type)
        return numpy_types[name]

    def broadcast(self: Any, lhs: Any, rhs: Any) -> Any:
        return (lhs, rhs) if lhs.shape is rhs.shape else plain_broadcast(self, lhs, rhs)

    def equal(self: Any, other: Any) -> bool:
        return self is other or plain_equal(self, other)

    def unwrap(value: Any) -> Any:
        return value if type(value) in plain_values else plain_unwrap(value)

    plain_equal, plain_unwrap = core.dtype.__eq__, core._unwrap_if_constexpr
    plain_values = frozenset([bool, int, float, core.tensor])
    core.dtype.__eq__, core._unwrap_if_constexpr = equal, unwrap
    plain_broadcast = interpreter.TritonSemantic.broadcast_impl_value
    interpreter.TritonSemantic.broadcast_impl_value = broadcast
    core.block_type.__init__, core.tensor.__init__ = init_block, init_tensor
    interpreter._get_np_dtype = numpy_type_of
