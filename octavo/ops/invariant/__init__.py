"""Ops whose result for a row is bitwise the same whatever rows there are beside it: for batch_invariant, on a CPU.

torch's own depend on the number of rows in three ways: a library chooses another algorithm for another shape; threads
divide an elementwise op anywhere, and what is left over of whole vectors is computed by other code; a reduction to one
value is divided over threads. So products here have one shape, other ops are made of parts whose value depends on their
operands alone (correctly rounded arithmetic, and those of torch's functions that do: exp, erf, tanh, log), and a
reduction over a vocabulary has a row to itself. What is absent here is invariant in `ops/torch`; tests/ops hold both to
it.
"""

from __future__ import annotations

from octavo.ops.invariant.activation import gelu_and_mul, gelu_tanh_and_mul, silu_and_mul
from octavo.ops.invariant.linear import linear
from octavo.ops.invariant.logprobs import gather_logprobs, log_mass
from octavo.ops.invariant.rope import rope_and_write

OPS = {
    function.__name__: function
    for function in (
        gather_logprobs,
        gelu_and_mul,
        gelu_tanh_and_mul,
        linear,
        log_mass,
        rope_and_write,
        silu_and_mul,
    )
}
