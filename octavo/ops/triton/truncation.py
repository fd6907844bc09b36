"""Where min_p, top_k and top_p cut a row of logits, found without sorting it.

The kept tokens are those above a threshold, which is a logit of the row, and of those equal to it the ones up to some
id. It is searched for between two bounds: each pass over the listed blocks sums what lies at or above three pivots, and
pulls the bounds to the pivots around the threshold and to the outermost logits between them, until one is left. Maxima
and masses of blocks give bounds to start from, so that few blocks of a peaked row are listed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.ops.triton.logit_blocks import (
    INF,
    dense_rows,
    float_of,
    key_of,
    load_tile,
    make_list,
    row_maximum,
    summaries,
    summarise,
)

LEAST = tl.constexpr(-3.4028234663852886e38)  # of finite floats
TINY = tl.constexpr(2.2250738585072014e-308)
BOUND_STEPS = tl.constexpr(4)


@triton.jit
def _bound(maxima, weights, wanted, lowest, greatest):
    """Some t for which the blocks with a maximum of t or more weigh at least `wanted`; minus infinity if not even all
    do. `lowest` is the least of the maxima that are finite."""
    low = lowest
    high = greatest
    share = (tl.arange(0, 8) + 1) / 9.0
    for _ in range(BOUND_STEPS):
        pivots = low * (1.0 - share) + high * share
        sums = tl.sum(tl.where(maxima[None, :] >= pivots[:, None], weights[None, :], 0.0), 1)
        is_enough = sums >= wanted
        low = tl.maximum(low, tl.max(tl.where(is_enough, pivots, -INF), 0))
        high = tl.minimum(high, tl.min(tl.where(is_enough, INF, pivots), 0))
    is_enough = tl.sum(tl.where(maxima >= lowest, weights, 0.0), 0) >= wanted
    return tl.where(is_enough, low, -INF)


@triton.jit
def _search(
    row_ptr,
    list_ptr,
    num_listed,
    vocab_size,
    temperature,
    inverse,
    greatest,
    low,
    floor,
    wanted,
    by_mass,
    SUBS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The greatest logit t, `low` at least, such that the logits from t on number `wanted`, or weigh it, `by_mass`.
    Logits below `floor` do not count. Those from `low` on are enough."""
    low_key = key_of(low).to(tl.int64)
    high_key = key_of(greatest).to(tl.int64) + 1  # nothing is there
    while high_key - low_key > 1:
        low_float = float_of(low_key)
        high_float = float_of(high_key)
        # Halves and quarters between the floats; between the bits where those are infinite or near one another.
        spread = high_key - low_key
        key_1 = low_key + (spread + 3) // 4
        key_2 = low_key + (spread + 1) // 2
        key_3 = high_key - (spread + 3) // 4
        if (spread > 8388608) & (low_float > -INF) & (high_float < INF):
            key_1 = key_of(low_float * 0.75 + high_float * 0.25).to(tl.int64)
            key_2 = key_of(low_float * 0.5 + high_float * 0.5).to(tl.int64)
            key_3 = key_of(low_float * 0.25 + high_float * 0.75).to(tl.int64)
        pivot_1 = float_of(key_1)
        pivot_2 = float_of(key_2)
        pivot_3 = float_of(key_3)
        sum_1 = tl.zeros([SUBS, BLOCK], tl.float32)
        sum_2 = tl.zeros([SUBS, BLOCK], tl.float32)
        sum_3 = tl.zeros([SUBS, BLOCK], tl.float32)
        least = tl.full([SUBS, BLOCK], INF, tl.float32)
        most = tl.full([SUBS, BLOCK], -INF, tl.float32)
        for first in range(0, num_listed, SUBS):
            x, _ = load_tile(row_ptr, list_ptr, first, num_listed, vocab_size, temperature, inverse, SUBS)
            weight = tl.where(x >= floor, tl.where(by_mass, tl.exp(x - greatest), 1.0), 0.0)
            sum_1 += tl.where(x >= pivot_1, weight, 0.0)
            sum_2 += tl.where(x >= pivot_2, weight, 0.0)
            sum_3 += tl.where(x >= pivot_3, weight, 0.0)
            least = tl.minimum(least, tl.where(x >= low_float, x, INF))
            most = tl.maximum(most, tl.where(x < high_float, x, -INF))
        has_1 = tl.sum(sum_1.to(tl.float64)) >= wanted
        has_2 = tl.sum(sum_2.to(tl.float64)) >= wanted
        has_3 = tl.sum(sum_3.to(tl.float64)) >= wanted
        low_key = tl.where(has_3, key_3, tl.where(has_2, key_2, tl.where(has_1, key_1, low_key)))
        high_key = tl.where(has_3, high_key, tl.where(has_2, key_3, tl.where(has_1, key_2, key_1)))
        low_key = tl.maximum(low_key, key_of(tl.min(least)).to(tl.int64))
        high_key = tl.minimum(high_key, key_of(tl.max(most)).to(tl.int64) + 1)
    return float_of(low_key)


@triton.jit
def _mass_from(
    row_ptr,
    list_ptr,
    num_listed,
    vocab_size,
    temperature,
    inverse,
    greatest,
    threshold,
    SUBS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(the mass of the listed logits above `threshold`, how many equal it)."""
    above = tl.zeros([SUBS, BLOCK], tl.float32)
    equal = tl.zeros([SUBS, BLOCK], tl.int32)
    for first in range(0, num_listed, SUBS):
        x, _ = load_tile(row_ptr, list_ptr, first, num_listed, vocab_size, temperature, inverse, SUBS)
        above += tl.where(x > threshold, tl.exp(x - greatest), 0.0)
        equal += (x == threshold).to(tl.int32)
    return tl.sum(above.to(tl.float64)), tl.sum(equal)


@triton.jit
def _id_of_equal(
    row_ptr,
    list_ptr,
    num_listed,
    vocab_size,
    temperature,
    inverse,
    threshold,
    wanted,
    SUBS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The id of the logit that is the `wanted`-th, from 1, to equal `threshold`."""
    found = vocab_size
    before = 0
    for first in range(0, num_listed, SUBS):
        x, token_id = load_tile(row_ptr, list_ptr, first, num_listed, vocab_size, temperature, inverse, SUBS)
        is_equal = (x == threshold).to(tl.int32)
        in_blocks = tl.sum(is_equal, 1)
        number = before + (tl.cumsum(in_blocks, 0) - in_blocks)[:, None] + tl.cumsum(is_equal, 1)
        is_it = (is_equal > 0) & (number == wanted)
        found = tl.minimum(found, tl.min(tl.where(is_it, token_id, vocab_size)))
        before += tl.sum(in_blocks, 0)
    return found


@triton.jit
def border(
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
    SUBS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(threshold, the last kept id of those equal to it, how many blocks are listed) of a row with a finite maximum.
    All that is kept is in the list."""
    lowest = tl.min(tl.where(maxima == -INF, greatest, maxima), 0)
    likeliest = tl.exp(maxima - greatest)
    mass = tl.sum((masses * likeliest).to(tl.float64), 0)  # of what is kept so far
    threshold = -INF
    if min_p > 0:
        threshold = greatest + tl.log(min_p.to(tl.float64)).to(tl.float32)
    last_id = vocab_size
    num_listed = 0
    for stage in range(2):  # top_k, then top_p: one code for both, which takes long to compile
        by_mass = stage == 1
        is_on = tl.where(by_mass, top_p < 1, (top_k > 0) & (top_k < vocab_size))
        wanted = tl.where(by_mass, tl.maximum(top_p.to(tl.float64) * mass, TINY), top_k.to(tl.float64))
        low = threshold
        if is_on:
            bound = _bound(maxima, tl.where(by_mass, likeliest, 1.0), wanted, lowest, greatest)
            if by_mass:
                # All logits below t weigh less than V exp(t - greatest). Where that is below (1 - p) of the mass, t is
                # a bound as well.
                below = tl.log((1.0 - top_p.to(tl.float64)) * mass / vocab_size).to(tl.float32)
                low = tl.minimum(tl.maximum(tl.maximum(low, greatest + below - 0.001), bound), greatest)
            else:
                low = bound
        num_listed = make_list(list_ptr, block, maxima >= tl.maximum(low, LEAST))
        if is_on:
            floor = tl.where(by_mass, threshold, -INF)
            found = _search(
                row_ptr,
                list_ptr,
                num_listed,
                vocab_size,
                temperature,
                inverse,
                greatest,
                low,
                floor,
                wanted,
                by_mass,
                SUBS,
                BLOCK,
            )
            threshold = tl.maximum(threshold, found)
        if (top_p < 1) & (threshold > -INF):
            above, num_equal = _mass_from(
                row_ptr, list_ptr, num_listed, vocab_size, temperature, inverse, greatest, threshold, SUBS, BLOCK
            )
            each = tl.exp(threshold - greatest).to(tl.float64)
            mass = above + num_equal * each
            if by_mass:
                num_kept = tl.ceil((wanted - above) / tl.where(each > 0, each, 1.0))
                if (num_kept < num_equal) & (each > 0):
                    number = tl.maximum(num_kept, 1.0).to(tl.int32)
                    last_id = _id_of_equal(
                        row_ptr, list_ptr, num_listed, vocab_size, temperature, inverse, threshold, number, SUBS, BLOCK
                    )
    return threshold, last_id, num_listed


@triton.jit
def is_kept(x, token_id, threshold, last_id):
    return (x > threshold) | ((x == threshold) & (token_id <= last_id))


@triton.jit
def _find_borders(
    logits_ptr,
    logits_stride,
    max_ptr,
    sum_ptr,
    list_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    threshold_ptr,
    last_id_ptr,
    vocab_size,
    num_blocks,
    WIDTH: tl.constexpr,
    SUBS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, WIDTH)
    maxima = summaries(max_ptr, row, num_blocks, block, -float("inf"))
    greatest, is_sound = row_maximum(maxima)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    threshold = -INF
    last_id = vocab_size
    if (top_k > 0) | (top_p < 1) | (min_p > 0):
        if is_sound:
            masses = summaries(sum_ptr, row, num_blocks, block, 0.0)
            threshold, last_id, _ = border(
                logits_ptr + row * logits_stride,
                list_ptr + row * WIDTH,
                maxima,
                masses,
                block,
                greatest,
                top_k,
                top_p,
                min_p,
                vocab_size,
                1.0,
                1.0,
                SUBS,
                BLOCK,
            )
        else:
            threshold = INF
            last_id = -1
    tl.store(threshold_ptr + row, threshold)
    tl.store(last_id_ptr + row, last_id)


@triton.jit
def _mask(logits_ptr, logits_stride, threshold_ptr, last_id_ptr, out_ptr, vocab_size, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    token_id = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = token_id < vocab_size
    x = tl.load(logits_ptr + row * logits_stride + token_id, mask=inside, other=0.0)
    threshold = tl.load(threshold_ptr + row)
    kept = is_kept(x.to(tl.float32), token_id, threshold, tl.load(last_id_ptr + row)) | (threshold == -INF)
    tl.store(out_ptr + row * vocab_size + token_id, tl.where(kept, x, -INF), mask=inside)


def list_width(num_blocks: int) -> int:
    return max(2, triton.next_power_of_2(num_blocks))


def tile_blocks(width: int) -> int:
    return min(32, width)


def mask_truncated(
    logits_SV: Tensor, top_k_S: Tensor, top_p_S: Tensor, min_p_S: Tensor, tile_rows: int | None = None
) -> Tensor:
    logits_SV = dense_rows(logits_SV)
    num_rows, vocab_size = logits_SV.shape
    out = torch.empty(logits_SV.shape, dtype=logits_SV.dtype, device=logits_SV.device)
    if not num_rows:
        return out
    max_SN, sum_SN = summarise(logits_SV, None, tile_rows=tile_rows)
    width = list_width(max_SN.shape[1])
    threshold_S = torch.empty(num_rows, dtype=torch.float32, device=logits_SV.device)
    last_id_S = torch.empty(num_rows, dtype=torch.int32, device=logits_SV.device)
    _find_borders[(num_rows,)](
        logits_SV,
        logits_SV.stride(0),
        max_SN,
        sum_SN,
        torch.empty(num_rows, width, dtype=torch.int32, device=logits_SV.device),
        top_k_S.contiguous(),
        top_p_S.contiguous(),
        min_p_S.contiguous(),
        threshold_S,
        last_id_S,
        vocab_size,
        max_SN.shape[1],
        WIDTH=width,
        SUBS=tile_blocks(width),
        BLOCK=128,
        num_warps=16,
    )
    size = min(4096, triton.next_power_of_2(vocab_size))
    _mask[(num_rows, triton.cdiv(vocab_size, size))](
        logits_SV, logits_SV.stride(0), threshold_S, last_id_S, out, vocab_size, SIZE=size, num_warps=8
    )
    return out
