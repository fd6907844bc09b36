"""From logits to tokens in Triton: a pass over all logits by many programs, then one program a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.ops.triton.logit_blocks import (
    INF,
    dense_rows,
    first_greatest,
    invert,
    load_block,
    load_tile,
    row_maximum,
    summaries,
    summarise,
    temperature_of,
)
from octavo.ops.triton.truncation import border, is_kept, list_width, tile_blocks


@triton.jit
def _mix64(value):
    """SplitMix64's finaliser."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB
    return value ^ (value >> 31)


@triton.jit
def _uniform(seed, position):
    """SplitMix64 (Steele, Lea, Flood 2014): stream `mix(seed)`, element `position`; the top 53 bits make the float."""
    state = _mix64(seed.to(tl.uint64) + 0x9E3779B97F4A7C15) + (position.to(tl.uint64) + 1) * 0x9E3779B97F4A7C15
    return (_mix64(state) >> 11).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def _row_uniform(seeds_ptr, positions_ptr, out_ptr, num_rows, SIZE: tl.constexpr):
    row = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    seed = tl.load(seeds_ptr + row, mask=row < num_rows, other=0)
    position = tl.load(positions_ptr + row, mask=row < num_rows, other=0)
    tl.store(out_ptr + row, _uniform(seed, position), mask=row < num_rows)


@triton.jit
def _draw_in(
    row_ptr,
    chosen,
    greatest,
    threshold,
    last_id,
    share,
    vocab_size,
    temperature,
    inverse,
    BLOCK: tl.constexpr,
):
    """The token of a block, among those kept."""
    x, token_id = load_block(row_ptr, chosen, vocab_size, temperature, inverse)
    weight = tl.where(is_kept(x, token_id, threshold, last_id), tl.exp(x - greatest), 0.0)
    inside, _ = invert(weight, share, tl.arange(0, BLOCK), BLOCK)
    return tl.minimum(chosen * BLOCK + inside, vocab_size - 1).to(tl.int64)


@triton.jit
def _kept_masses(
    row_ptr,
    list_ptr,
    mass_ptr,
    num_listed,
    place,
    greatest,
    threshold,
    last_id,
    vocab_size,
    temperature,
    inverse,
    SUBS: tl.constexpr,
):
    """The masses of what is kept of the listed blocks; mass_ptr has room for them."""
    for first in range(0, num_listed, SUBS):
        x, token_id = load_tile(row_ptr, list_ptr, first, num_listed, vocab_size, temperature, inverse, SUBS)
        weight = tl.where(is_kept(x, token_id, threshold, last_id), tl.exp(x - greatest), 0.0)
        at = first + tl.arange(0, SUBS)
        tl.store(mass_ptr + at, tl.sum(weight, 1), mask=at < num_listed)
    tl.debug_barrier()
    return tl.load(mass_ptr + place, mask=place < num_listed, other=0.0)


# columns of a table: where they begin depends on the number of rows, and each variant takes seconds to compile
_COLUMNS = ["temperature_ptr", "top_k_ptr", "top_p_ptr", "min_p_ptr", "seeds_ptr", "positions_ptr"]


@triton.jit(do_not_specialize_on_alignment=_COLUMNS)
def _choose_tokens(
    logits_ptr,
    logits_stride,
    max_ptr,
    sum_ptr,
    list_ptr,
    mass_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seeds_ptr,
    positions_ptr,
    ids_ptr,
    greatest_ptr,
    vocab_size,
    num_blocks,
    WIDTH: tl.constexpr,
    SUBS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    block = tl.arange(0, WIDTH)
    maxima = summaries(max_ptr, row, num_blocks, block, -float("inf"))
    greatest, is_sound = row_maximum(maxima)
    tl.store(greatest_ptr + row, greatest)
    temperature, inverse = temperature_of(temperature_ptr + row)
    if (tl.load(temperature_ptr + row) == 0) | (not is_sound):
        best = first_greatest(row_ptr, maxima, greatest, block, vocab_size, temperature, inverse, WIDTH)
        tl.store(ids_ptr + row, best.to(tl.int64))
    else:
        masses = summaries(sum_ptr, row, num_blocks, block, 0.0)
        weights = masses * tl.exp(maxima - greatest)
        top_k = tl.load(top_k_ptr + row)
        top_p = tl.load(top_p_ptr + row)
        min_p = tl.load(min_p_ptr + row)
        is_truncated = ((top_k > 0) & (top_k < vocab_size)) | (top_p < 1) | (min_p > 0)
        threshold = -INF
        last_id = vocab_size
        list_ptr += row * WIDTH
        if is_truncated:
            threshold, last_id, num_listed = border(
                row_ptr,
                list_ptr,
                maxima,
                masses,
                block,
                greatest,
                top_k,
                top_p,
                min_p,
                vocab_size,
                temperature,
                inverse,
                SUBS,
                BLOCK,
            )
            weights = _kept_masses(
                row_ptr,
                list_ptr,
                mass_ptr + row * WIDTH,
                num_listed,
                block,
                greatest,
                threshold,
                last_id,
                vocab_size,
                temperature,
                inverse,
                SUBS,
            )
        uniform = _uniform(tl.load(seeds_ptr + row), tl.load(positions_ptr + row))
        chosen, share = invert(weights, uniform, block, WIDTH)
        if is_truncated:
            chosen = tl.load(list_ptr + chosen)
        token_id = _draw_in(
            row_ptr, chosen, greatest, threshold, last_id, share, vocab_size, temperature, inverse, BLOCK
        )
        tl.store(ids_ptr + row, token_id)


@triton.jit
def _sample(
    logits_ptr,
    logits_stride,
    max_ptr,
    sum_ptr,
    uniform_ptr,
    ids_ptr,
    vocab_size,
    num_blocks,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    block = tl.arange(0, WIDTH)
    maxima = summaries(max_ptr, row, num_blocks, block, -float("inf"))
    greatest, is_sound = row_maximum(maxima)
    if is_sound:
        masses = summaries(sum_ptr, row, num_blocks, block, 0.0)
        uniform = tl.load(uniform_ptr + row)
        chosen, share = invert(masses * tl.exp(maxima - greatest), uniform, block, WIDTH)
        token_id = _draw_in(row_ptr, chosen, greatest, -INF, vocab_size, share, vocab_size, 1.0, 1.0, BLOCK)
        tl.store(ids_ptr + row, token_id)
    else:
        tl.store(ids_ptr + row, 0)


@triton.jit
def _argmax(logits_ptr, logits_stride, max_ptr, ids_ptr, greatest_ptr, vocab_size, num_blocks, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, WIDTH)
    maxima = summaries(max_ptr, row, num_blocks, block, -float("inf"))
    greatest, _ = row_maximum(maxima)
    token_id = first_greatest(logits_ptr + row * logits_stride, maxima, greatest, block, vocab_size, 1.0, 1.0, WIDTH)
    tl.store(ids_ptr + row, token_id.to(tl.int64))
    tl.store(greatest_ptr + row, greatest.to(greatest_ptr.dtype.element_ty))


def row_uniform(seeds_S: Tensor, positions_S: Tensor) -> Tensor:
    num_rows = seeds_S.shape[0]
    out = torch.empty(num_rows, dtype=torch.float64, device=seeds_S.device)
    if num_rows:
        _row_uniform[(triton.cdiv(num_rows, 256),)](
            seeds_S.contiguous(), positions_S.contiguous(), out, num_rows, SIZE=256, num_warps=4
        )
    return out


def argmax(logits_SV: Tensor) -> tuple[Tensor, Tensor]:
    logits_SV = dense_rows(logits_SV)
    num_rows, vocab_size = logits_SV.shape
    ids_S = torch.empty(num_rows, dtype=torch.int64, device=logits_SV.device)
    greatest_S = torch.empty(num_rows, dtype=logits_SV.dtype, device=logits_SV.device)
    if num_rows:
        max_SN, _ = summarise(logits_SV, None, with_sum=False)
        width = list_width(max_SN.shape[1])
        _argmax[(num_rows,)](
            logits_SV,
            logits_SV.stride(0),
            max_SN,
            ids_S,
            greatest_S,
            vocab_size,
            max_SN.shape[1],
            WIDTH=width,
            num_warps=max(1, min(8, width // 128)),
        )
    return ids_S, greatest_S


def sample(logits_SV: Tensor, uniform_S: Tensor) -> Tensor:
    logits_SV = dense_rows(logits_SV)
    num_rows, vocab_size = logits_SV.shape
    ids_S = torch.empty(num_rows, dtype=torch.int64, device=logits_SV.device)
    if num_rows:
        max_SN, sum_SN = summarise(logits_SV, None)
        width = list_width(max_SN.shape[1])
        _sample[(num_rows,)](
            logits_SV,
            logits_SV.stride(0),
            max_SN,
            sum_SN,
            uniform_S.double().contiguous(),
            ids_S,
            vocab_size,
            max_SN.shape[1],
            WIDTH=width,
            BLOCK=128,
            num_warps=max(1, min(8, width // 128)),
        )
    return ids_S


def choose_tokens(
    logits_SV: Tensor,
    temperature_S: Tensor,
    top_k_S: Tensor,
    top_p_S: Tensor,
    min_p_S: Tensor,
    seeds_S: Tensor,
    positions_S: Tensor,
    tile_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    logits_SV, temperature_S = dense_rows(logits_SV), temperature_S.contiguous()
    num_rows, vocab_size = logits_SV.shape
    device = logits_SV.device
    ids_S = torch.empty(num_rows, dtype=torch.int64, device=device)
    greatest_S = torch.empty(num_rows, dtype=torch.float32, device=device)
    if num_rows:
        max_SN, sum_SN = summarise(logits_SV, temperature_S, tile_rows=tile_rows)
        width = list_width(max_SN.shape[1])
        _choose_tokens[(num_rows,)](
            logits_SV,
            logits_SV.stride(0),
            max_SN,
            sum_SN,
            torch.empty(num_rows, width, dtype=torch.int32, device=device),
            torch.empty(num_rows, width, dtype=torch.float32, device=device),
            temperature_S,
            top_k_S.contiguous(),
            top_p_S.contiguous(),
            min_p_S.contiguous(),
            seeds_S.contiguous(),
            positions_S.contiguous(),
            ids_S,
            greatest_S,
            vocab_size,
            max_SN.shape[1],
            WIDTH=width,
            SUBS=tile_blocks(width),
            BLOCK=128,
            num_warps=16,
        )
    return ids_S, greatest_S
