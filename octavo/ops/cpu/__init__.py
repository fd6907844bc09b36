"""The ops in C++, for processors: csrc/cpu, compiled at installation. Importing this fails where they were not."""

from __future__ import annotations

try:
    from octavo import _cpu  # noqa: F401
except ImportError as error:
    raise ImportError(
        "octavo's CPU kernels are not compiled, so torch's operators compute: quantised weights are expanded to "
        "several times their size, and each token takes several times as long. An installation with a C++ compiler "
        f"(pip install .), or scripts/build_cpu in a checkout, makes them ({error})"
    ) from None

from octavo.ops.cpu.activation import gelu_and_mul, gelu_tanh_and_mul, silu_and_mul
from octavo.ops.cpu.attention import paged_attention
from octavo.ops.cpu.batch import append_sampled, build_batch, mark_bad_rows
from octavo.ops.cpu.linear import gated_linear_packed, linear_packed, rows_packed
from octavo.ops.cpu.norm import add_rms_norm, gated_rms_norm, rms_norm
from octavo.ops.cpu.rope import rope_and_write, write_kv

OPS = {
    function.__name__: function
    for function in (
        add_rms_norm,
        append_sampled,
        build_batch,
        gated_linear_packed,
        gated_rms_norm,
        gelu_and_mul,
        gelu_tanh_and_mul,
        linear_packed,
        mark_bad_rows,
        paged_attention,
        rms_norm,
        rope_and_write,
        rows_packed,
        silu_and_mul,
        write_kv,
    )
}
