"""Penalties in Triton, over the whole vocabulary: knowing where tokens were seen would mean to wait for the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.ops.triton.logit_blocks import dense_rows


@triton.jit
def _apply_penalties(
    logits_ptr,
    logits_stride,
    mask_ptr,
    counts_ptr,
    repetition_ptr,
    frequency_ptr,
    presence_ptr,
    slots_ptr,
    out_ptr,
    vocab_size,
    HAS_SLOTS: tl.constexpr,
    SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    token_id = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = token_id < vocab_size
    slot = tl.load(slots_ptr + row) if HAS_SLOTS else row
    x = tl.load(logits_ptr + row * logits_stride + token_id, mask=inside, other=0.0)
    in_prompt = tl.load(mask_ptr + slot * vocab_size + token_id, mask=inside, other=0) != 0
    count = tl.load(counts_ptr + slot * vocab_size + token_id, mask=inside, other=0)
    repetition = tl.load(repetition_ptr + row)
    wide = x.to(tl.float32)
    repeated = tl.where(wide > 0, tl.div_rn(wide, repetition), wide * repetition)
    wide = tl.where(in_prompt | (count > 0), repeated, wide)
    penalty = tl.load(frequency_ptr + row) * count.to(tl.float32)
    wide = tl.where(count > 0, wide - penalty - tl.load(presence_ptr + row), wide)
    tl.store(out_ptr + row * vocab_size + token_id, wide.to(x.dtype), mask=inside)


def apply_penalties(
    logits_SV: Tensor,
    prompt_mask_SV: Tensor,
    output_counts_SV: Tensor,
    repetition_S: Tensor,
    frequency_S: Tensor,
    presence_S: Tensor,
    slots_S: Tensor | None = None,
) -> Tensor:
    logits_SV = dense_rows(logits_SV)
    num_rows, vocab_size = logits_SV.shape
    out = torch.empty(logits_SV.shape, dtype=logits_SV.dtype, device=logits_SV.device)
    if num_rows:
        size = min(2048, triton.next_power_of_2(vocab_size))
        _apply_penalties[(num_rows, triton.cdiv(vocab_size, size))](
            logits_SV,
            logits_SV.stride(0),
            prompt_mask_SV.contiguous().view(torch.uint8),
            output_counts_SV.contiguous(),
            repetition_S.contiguous(),
            frequency_S.contiguous(),
            presence_S.contiguous(),
            output_counts_SV if slots_S is None else slots_S.contiguous(),
            out,
            vocab_size,
            HAS_SLOTS=slots_S is not None,
            SIZE=size,
            num_warps=4,
        )
    return out
