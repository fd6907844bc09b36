"""The specification of every op: plain torch, on any device."""

from __future__ import annotations

from octavo.ops.torch.activation import gelu_and_mul, gelu_tanh_and_mul, silu_and_mul
from octavo.ops.torch.attention import paged_attention
from octavo.ops.torch.batch import append_sampled, build_batch, mark_bad_rows
from octavo.ops.torch.cache import write_kv
from octavo.ops.torch.linear import gated_linear_packed, linear, linear_packed, rows_packed
from octavo.ops.torch.norm import add_rms_norm, gated_rms_norm, rms_norm
from octavo.ops.torch.rope import rope_and_write
from octavo.ops.torch.sampling import (
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
from octavo.ops.torch.ssm import causal_conv1d, selective_scan, ssd

OPS = {
    function.__name__: function
    for function in (
        add_rms_norm,
        append_sampled,
        apply_bitmask,
        apply_penalties,
        argmax,
        build_batch,
        causal_conv1d,
        choose_tokens,
        gated_linear_packed,
        gated_rms_norm,
        gather_logprobs,
        gelu_and_mul,
        gelu_tanh_and_mul,
        linear,
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
        selective_scan,
        silu_and_mul,
        ssd,
        token_ranks,
        write_kv,
    )
}
