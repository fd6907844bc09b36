"""What recurrent kernels have to do in a step, listed on the device once for all layers, and arithmetic they share.

Rows of more than SHORT_TOKENS tokens are cut into chunks, counted from the row's first token, whatever its neighbours:

    row of 300   | 0: full | 1: full | last |        chunks of 128
    row of 40    | last         |
    row of 1     -

Everything is read from query_start, so that a captured graph with padded bounds serves every mixture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.ops.state_rows import SHORT_TOKENS, StateRows

RECORD = (
    8  # int32 places of a chunk: row, first token, tokens; of a last one also its row's first full one and how many
)
LIST_PROGRAMS = 16  # each finds all offsets and writes its share of the records
PLACE_TOKENS = 256  # of a program that finds tokens' places

# ---- arithmetic ------------------------------------------------------------------------------------------------------


@triton.jit
def softplus(x):
    """log(1 + exp(x)) in float32, also where exp(x) is small: the error of 1 + e cancels in log(u) / (u - 1)."""
    e = tl.exp(tl.minimum(x, 20.0))
    u = 1.0 + e
    small = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.where(x <= 20.0, small, x)


@triton.jit
def time_step(dt, bias, low, high, HAS_LIMIT: tl.constexpr):
    """Mamba-2's delta."""
    delta = softplus(dt.to(tl.float32) + bias)
    if HAS_LIMIT:  # NaN stays NaN
        delta = tl.where(delta < low, low, delta)
        delta = tl.where(delta > high, high, delta)
    return delta


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


# ---- where a token is in its row -------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["num_rows", "num_tokens", "steps"])
def _find_places(query_start, places, num_rows, num_tokens, steps, BLOCK: tl.constexpr):
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(query_start + num_rows)
    # query_start[low] <= token < query_start[high], halved until they are neighbours
    low = tl.zeros([BLOCK], tl.int32)
    high = low + num_rows
    for _ in range(steps):
        middle = (low + high) // 2
        is_before = tl.load(query_start + middle) <= token
        low = tl.where(is_before, middle, low)
        high = tl.where(is_before, high, middle)
    place = tl.where(token < total, token - tl.load(query_start + low), -1)
    tl.store(places + token, place, mask=token < num_tokens)


def token_places(rows: StateRows, num_tokens: int) -> torch.Tensor:
    """[T] int32: each token's place in its row; of padding -1."""
    if "places" not in rows.derived:
        places = torch.empty(num_tokens, dtype=torch.int32, device=rows.query_start.device)
        _find_places[(triton.cdiv(num_tokens, PLACE_TOKENS),)](
            rows.query_start,
            places,
            rows.num_rows,
            num_tokens,
            rows.num_rows.bit_length(),
            BLOCK=PLACE_TOKENS,
            num_warps=4,
        )
        rows.derived["places"] = places
    return rows.derived["places"]


# ---- chunks of long rows ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunks:
    """`records` [1 + max_last + max_full, RECORD] int32: first how many last and full ones there are, then the last
    chunks of the long rows, then the chunks before these, row by row."""

    records: torch.Tensor
    max_last: int
    max_full: int
    size: int


@triton.jit(do_not_specialize=["num_rows", "max_last", "size"])
def _list_chunks(
    query_start, records, num_rows, max_last, size, SHORT: tl.constexpr, BLOCK_R: tl.constexpr, RECORD: tl.constexpr
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    lane = tl.arange(0, BLOCK_R)
    num_last, num_full = 0, 0
    for first in range(0, num_rows, BLOCK_R):
        row = first + lane
        real = row < num_rows
        begin = tl.load(query_start + row, mask=real, other=0).to(tl.int32)
        tokens = tl.load(query_start + row + 1, mask=real, other=0).to(tl.int32) - begin
        is_long = tokens > SHORT
        long = is_long.to(tl.int32)
        full = tl.where(is_long, (tokens - 1) // size, 0)
        at_last = num_last + tl.cumsum(long, 0) - long
        at_full = num_full + tl.cumsum(full, 0) - full
        if program == 0:
            record = records + (1 + at_last) * RECORD
            tl.store(record, row, mask=is_long)
            tl.store(record + 1, begin + full * size, mask=is_long)
            tl.store(record + 2, tokens - full * size, mask=is_long)
            tl.store(record + 3, at_full, mask=is_long)
            tl.store(record + 4, full, mask=is_long)
        for index in range(program, tl.max(full, 0), programs):
            here = index < full
            record = records + (1 + max_last + at_full + index) * RECORD
            tl.store(record, row, mask=here)
            tl.store(record + 1, begin + index * size, mask=here)
            tl.store(record + 2, tl.zeros_like(row) + size, mask=here)
        num_last += tl.sum(long, 0)
        num_full += tl.sum(full, 0)
    if program == 0:
        tl.store(records, num_last)
        tl.store(records + 1, num_full)


def list_chunks(rows: StateRows, num_tokens: int, size: int) -> Chunks:
    """Of the rows of more than SHORT_TOKENS tokens."""
    key = f"chunks {size}"
    if key not in rows.derived:
        max_last, max_full = rows.bounds.long_rows, max(0, num_tokens - 1) // size
        device = rows.query_start.device
        records = torch.empty(1 + max_last + max_full, RECORD, dtype=torch.int32, device=device)
        _list_chunks[(LIST_PROGRAMS if device.type == "cuda" else 2,)](
            rows.query_start,
            records,
            rows.num_rows,
            max_last,
            size,
            SHORT=SHORT_TOKENS,
            BLOCK_R=1024,
            RECORD=RECORD,
            num_warps=4,
        )
        rows.derived[key] = Chunks(records, max_last, max_full, size)
    return rows.derived[key]
