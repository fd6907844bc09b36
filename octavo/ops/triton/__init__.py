"""Kernels in Triton, for GPUs; without one they run only under Triton's interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import torch
import triton

if not (triton.knobs.runtime.interpret or torch.cuda.is_available()):
    raise ImportError("no GPU is present (TRITON_INTERPRET=1 runs the kernels on a CPU, slowly)")

from octavo.ops.triton import (
    activation,
    attention,
    batch,
    linear,
    logprobs,
    norm,
    penalties,
    rope,
    sampling,
    ssm_conv,
    ssm_dual,
    ssm_scan,
    truncation,
)

OPS = {
    function.__name__: function
    for function in (
        activation.gelu_and_mul,
        activation.gelu_tanh_and_mul,
        activation.silu_and_mul,
        attention.paged_attention,
        batch.append_sampled,
        batch.build_batch,
        linear.linear,
        logprobs.gather_logprobs,
        norm.add_rms_norm,
        norm.gated_rms_norm,
        norm.rms_norm,
        penalties.apply_penalties,
        rope.rope_and_write,
        rope.write_kv,
        sampling.argmax,
        sampling.choose_tokens,
        sampling.row_uniform,
        sampling.sample,
        ssm_conv.causal_conv1d,
        ssm_dual.ssd,
        ssm_scan.selective_scan,
        truncation.mask_truncated,
    )
}
