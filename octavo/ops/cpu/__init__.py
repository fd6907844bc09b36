"""The ops in C++, for processors: csrc/cpu, compiled at installation. Importing this fails where they were not."""

from __future__ import annotations

try:
    from octavo import _cpu  # noqa: F401
except ImportError as error:
    # the figures are those of the demo model on two cores with AMX
    why = "" if "cannot import name" in str(error) else f" ({error})"
    raise ImportError(
        "octavo's CPU kernels are not compiled, so torch's operators compute: quantised weights are expanded (the demo "
        "model's 92 MiB to 256), and a token takes about 3 times as long. Where there is a C++ compiler, pip install . "
        f"makes them, or scripts/build_cpu in a checkout{why}"
    ) from None

from octavo.ops.cpu.activation import gelu_and_mul, gelu_tanh_and_mul, silu_and_mul
from octavo.ops.cpu.attention import paged_attention
from octavo.ops.cpu.batch import append_sampled, build_batch, mark_bad_rows
from octavo.ops.cpu.linear import gated_linear_packed, linear_packed, rows_packed
from octavo.ops.cpu.norm import add_rms_norm, gated_rms_norm, rms_norm
from octavo.ops.cpu.rope import rope_and_write, write_kv
from octavo.ops.cpu.sampling import (
    apply_bitmask,
    apply_penalties,
    argmax,
    choose_tokens,
    gather_logprobs,
    log_mass,
    mask_truncated,
    row_uniform,
    sample,
    token_ranks,
)

OPS = {
    function.__name__: function
    for function in (
        add_rms_norm,
        append_sampled,
        apply_bitmask,
        apply_penalties,
        argmax,
        build_batch,
        choose_tokens,
        gated_linear_packed,
        gated_rms_norm,
        gather_logprobs,
        gelu_and_mul,
        gelu_tanh_and_mul,
        linear_packed,
        log_mass,
        mark_bad_rows,
        mask_truncated,
        paged_attention,
        rms_norm,
        rope_and_write,
        row_uniform,
        rows_packed,
        sample,
        silu_and_mul,
        token_ranks,
        write_kv,
    )
}
