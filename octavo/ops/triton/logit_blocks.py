"""Rows of logits as blocks of 128: each block's maximum and mass in one pass over all of them, and what the sampling
kernels, which then look into few blocks, have in common.

A row is read once by many programs; what follows is one program a row. There a *list* holds the blocks that still
matter, in order, and a *tile* is the logits of SUBS blocks of it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = tl.constexpr(128)
INF = tl.constexpr(float("inf"))


# ---- of all blocks ---------------------------------------------------------------------------------------------------


@triton.jit
def _summarise(
    logits_ptr,
    logits_stride,
    temperature_ptr,
    max_ptr,
    sum_ptr,
    vocab_size,
    num_blocks,
    HAS_TEMPERATURE: tl.constexpr,
    HAS_SUM: tl.constexpr,
    SUBS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * SUBS + tl.arange(0, SUBS)
    token_id = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(logits_ptr + row * logits_stride + token_id, mask=token_id < vocab_size, other=-float("inf"))
    x = x.to(tl.float32)
    if HAS_TEMPERATURE:
        temperature, inverse = temperature_of(temperature_ptr + row)
        x = divided(x, temperature, inverse)
    greatest = tl.max(x, 1)
    is_nan = tl.max((x != x).to(tl.int32), 1)
    if HAS_SUM:
        level = tl.where(greatest == -INF, 0.0, greatest)
        mass = tl.sum(tl.exp(x - level[:, None]), 1)
        tl.store(sum_ptr + row * num_blocks + block, mass, mask=block < num_blocks)
    greatest = tl.where(is_nan > 0, float("nan"), greatest)
    tl.store(max_ptr + row * num_blocks + block, greatest, mask=block < num_blocks)


def summarise(
    logits_SV: Tensor, temperature_S: Tensor | None, with_sum: bool = True, tile_rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """([S, N] maxima of blocks, NaN where one is, [S, N] sums of exp(logit - maximum)), float32, after division by
    `temperature` (if it is not 0). Rows' logits are dense. Tiles are as for `tile_rows` rows, if it says how many."""
    num_rows, vocab_size = logits_SV.shape
    num_blocks = triton.cdiv(vocab_size, BLOCK.value)
    greatest_SN = torch.empty(num_rows, num_blocks, dtype=torch.float32, device=logits_SV.device)
    mass_SN = torch.empty_like(greatest_SN) if with_sum else greatest_SN
    subs = min(16 if (tile_rows or num_rows) <= 16 else 32, triton.next_power_of_2(num_blocks))
    _summarise[(num_rows, triton.cdiv(num_blocks, subs))](
        logits_SV,
        logits_SV.stride(0),
        logits_SV if temperature_S is None else temperature_S,
        greatest_SN,
        mass_SN,
        vocab_size,
        num_blocks,
        HAS_TEMPERATURE=temperature_S is not None,
        HAS_SUM=with_sum,
        SUBS=subs,
        num_warps=4,
    )
    return greatest_SN, mass_SN


def dense_rows(logits_SV: Tensor) -> Tensor:
    return logits_SV if logits_SV.stride(1) == 1 else logits_SV.contiguous()


# ---- numbers ---------------------------------------------------------------------------------------------------------


@triton.jit
def temperature_of(ptr):
    """(temperature, its inverse); greedy rows, whose temperature is 0, are not scaled."""
    temperature = tl.load(ptr)
    temperature = tl.where(temperature == 0, 1.0, temperature)
    return temperature, tl.div_rn(1.0, temperature)


@triton.jit
def divided(x, temperature, inverse):
    """x / temperature, rounded to nearest (Markstein 1990: a product with the inverse and one correction)."""
    quotient = x * inverse
    exact = tl.fma(tl.fma(-quotient, temperature, x), inverse, quotient)
    return tl.where(tl.abs(quotient) < INF, exact, quotient)


@triton.jit
def key_of(x):
    """An integer in the order of the floats; equal for 0 and -0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def float_of(key):
    bits = key.to(tl.int32)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).to(tl.float32, bitcast=True)


@triton.jit
def invert(weights, uniform, place, SIZE: tl.constexpr):
    """The place that `uniform` of [0, 1) falls on when [0, 1) is divided by `weights`, and where inside, in [0, 1).

    Never a place of weight 0. If all are 0, the last.
    """
    ends = tl.cumsum(weights.to(tl.float64), 0)
    target = uniform * tl.max(ends, 0)
    is_possible = weights > 0
    last = tl.max(tl.where(is_possible, place, 0), 0)
    index = tl.min(tl.where(is_possible & (ends > target), place, SIZE), 0)
    index = tl.where(index == SIZE, last, index)
    end = tl.sum(tl.where(place == index, ends, 0.0), 0)
    weight = tl.sum(tl.where(place == index, weights.to(tl.float64), 0.0), 0)
    share = 1.0 - (end - target) / tl.where(weight > 0, weight, 1.0)
    return index, tl.minimum(tl.maximum(share, 0.0), 1.0 - 2.0**-53)


# ---- of one row's program --------------------------------------------------------------------------------------------


@triton.jit
def summaries(ptr, row, num_blocks, block, other):
    return tl.load(ptr + row * num_blocks + block, mask=block < num_blocks, other=other)


@triton.jit
def row_maximum(maxima):
    """(the row's maximum, NaN if there is a NaN; whether it is finite)."""
    is_nan = tl.max((maxima != maxima).to(tl.int32), 0) > 0
    greatest = tl.where(is_nan, float("nan"), tl.max(tl.where(maxima != maxima, -INF, maxima), 0))
    return greatest, tl.abs(greatest) < INF


@triton.jit
def load_block(row_ptr, block, vocab_size, temperature, inverse):
    token_id = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(row_ptr + token_id, mask=token_id < vocab_size, other=-float("inf")).to(tl.float32)
    return divided(x, temperature, inverse), token_id


@triton.jit
def first_greatest(row_ptr, maxima, greatest, block, vocab_size, temperature, inverse, WIDTH: tl.constexpr):
    """The lowest id of a row's maximum; of a broken row, some id."""
    at = tl.min(tl.where(maxima == greatest, block, WIDTH), 0)
    at = tl.minimum(at, (vocab_size - 1) // BLOCK)
    x, token_id = load_block(row_ptr, at, vocab_size, temperature, inverse)
    found = tl.min(tl.where(x == greatest, token_id, vocab_size), 0)
    return tl.minimum(found, vocab_size - 1)


@triton.jit
def make_list(list_ptr, block, is_member):
    """Writes the member blocks to the list, in order. Returns how many there are."""
    tl.debug_barrier()  # whoever still reads the last list
    member = is_member.to(tl.int32)
    tl.store(list_ptr + tl.cumsum(member, 0) - 1, block, mask=is_member)
    tl.debug_barrier()
    return tl.sum(member, 0)


@triton.jit
def load_tile(row_ptr, list_ptr, first, num_listed, vocab_size, temperature, inverse, SUBS: tl.constexpr):
    """Logits [SUBS, BLOCK] from the list's place `first` on, minus infinity past its end, and their ids."""
    place = first + tl.arange(0, SUBS)
    block = tl.load(list_ptr + place, mask=place < num_listed, other=0)
    token_id = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (place < num_listed)[:, None] & (token_id < vocab_size)
    x = tl.load(row_ptr + token_id, mask=inside, other=-float("inf")).to(tl.float32)
    return divided(x, temperature, inverse), token_id
