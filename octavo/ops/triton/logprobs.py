"""Log-probabilities and ranks in Triton. The likeliest tokens are taken one by one from the blocks' maxima."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.ops.torch import sampling as specification
from octavo.ops.triton.logit_blocks import (
    INF,
    dense_rows,
    load_block,
    load_tile,
    make_list,
    row_maximum,
    summaries,
    summarise,
)
from octavo.ops.triton.truncation import list_width, tile_blocks

MOST_TOP = 32  # beyond it, sorting is as fast


@triton.jit(do_not_specialize=["num_top"])  # the widest of a batch
def _gather_logprobs(
    logits_ptr,
    logits_stride,
    max_ptr,
    sum_ptr,
    list_ptr,
    tokens_ptr,
    ids_ptr,
    logprobs_ptr,
    ranks_ptr,
    vocab_size,
    num_blocks,
    num_top,
    WIDTH: tl.constexpr,
    SUBS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    list_ptr += row * WIDTH
    block = tl.arange(0, WIDTH)
    maxima = summaries(max_ptr, row, num_blocks, block, -float("inf"))
    masses = summaries(sum_ptr, row, num_blocks, block, 0.0)
    greatest, is_sound = row_maximum(maxima)
    level = tl.where(is_sound, greatest, 0.0)
    mass = tl.sum((masses * tl.exp(maxima - level)).to(tl.float64), 0)
    log_mass = tl.where(is_sound, tl.log(mass).to(tl.float32) + greatest, float("nan"))

    token = tl.load(tokens_ptr + row)
    chosen = tl.load(row_ptr + token).to(tl.float32)
    num_listed = make_list(list_ptr, block, maxima > chosen)
    above = tl.zeros([SUBS, BLOCK], tl.int32)
    for first in range(0, num_listed, SUBS):
        x, _ = load_tile(row_ptr, list_ptr, first, num_listed, vocab_size, 1.0, 1.0, SUBS)
        above += (x > chosen).to(tl.int32)
    out = row * (1 + num_top)
    tl.store(ids_ptr + out, token)
    tl.store(logprobs_ptr + out, chosen - log_mass)
    tl.store(ranks_ptr + out, 1 + tl.sum(above).to(tl.int64))

    # The next token is the first of the first block that has the greatest logit left; then the block has a new maximum.
    # A block of which nothing is left is NaN.
    left = tl.where(block < num_blocks, maxima, float("nan"))
    last = INF
    last_id = -1
    rank = 0
    for place in range(num_top):
        value = tl.max(tl.where(left == left, left, -INF), 0)
        at = tl.minimum(tl.min(tl.where(left == value, block, WIDTH), 0), num_blocks - 1)
        x, token_id = load_block(row_ptr, at, vocab_size, 1.0, 1.0)
        is_new = value < last
        is_possible = (x == value) & (token_id < vocab_size) & (is_new | (token_id > last_id))
        taken = tl.minimum(tl.min(tl.where(is_possible, token_id, vocab_size), 0), vocab_size - 1)
        remains = (token_id < vocab_size) & ((x < value) | ((x == value) & (token_id > taken)))
        rest = tl.max(tl.where(remains, x, -INF), 0)
        rest = tl.where(tl.max(remains.to(tl.int32), 0) > 0, rest, float("nan"))
        left = tl.where(block == at, rest, left)
        rank = tl.where(is_new | (place == 0), place + 1, rank)
        last = value
        last_id = taken
        tl.store(ids_ptr + out + 1 + place, taken.to(tl.int64))
        tl.store(logprobs_ptr + out + 1 + place, value - log_mass)
        tl.store(ranks_ptr + out + 1 + place, rank.to(tl.int64))


def gather_logprobs(
    logits_SV: Tensor, token_ids_S: Tensor, num_top: int, tile_rows: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    num_rows, vocab_size = logits_SV.shape
    num_top = min(num_top, vocab_size)
    if num_top > MOST_TOP:
        return specification.gather_logprobs(logits_SV, token_ids_S, num_top)
    logits_SV, device = dense_rows(logits_SV), logits_SV.device
    ids = torch.empty(num_rows, 1 + num_top, dtype=torch.int64, device=device)
    logprobs = torch.empty(num_rows, 1 + num_top, dtype=torch.float32, device=device)
    ranks = torch.empty(num_rows, 1 + num_top, dtype=torch.int64, device=device)
    if num_rows:
        max_SN, sum_SN = summarise(logits_SV, None, tile_rows=tile_rows)
        width = list_width(max_SN.shape[1])
        _gather_logprobs[(num_rows,)](
            logits_SV,
            logits_SV.stride(0),
            max_SN,
            sum_SN,
            torch.empty(num_rows, width, dtype=torch.int32, device=device),
            token_ids_S.contiguous(),
            ids,
            logprobs,
            ranks,
            vocab_size,
            max_SN.shape[1],
            num_top,
            WIDTH=width,
            SUBS=tile_blocks(width),
            BLOCK=128,
            num_warps=8,
        )
    return ids, logprobs, ranks
