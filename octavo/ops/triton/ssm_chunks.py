"""Mamba-2's state-space dual for rows of many tokens, by chunks (arXiv 2405.21060, section 6), in five kernels:

    steps       all chunks: time steps, and how far the state fades to each token
    states      full chunks: what their tokens add to a state that was zero before
    pass        long rows: the state before each full chunk, chunk after chunk, and before the last one
    scan        all chunks: y, from the state before and from the tokens inside
    states      last chunks: the rows' new states, where they lie

A long row's place in `states` is thus: its state before the step; before its last chunk; after the step. So only full
chunks need memory, however many rows there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.ops.state_rows import StateRows
from octavo.ops.triton.ssm_work import RECORD, Chunks, time_step

SHARED_HEADS = 2048  # chunks times heads from which a program takes several: then a GPU has enough of them


@dataclass(frozen=True)
class ChunkConfig:
    """How chunks of `size` tokens are computed, `keys` of them at once (all or half): products of tiles of `block_p`
    channels of a head by `block_n` places of its state, rounded to the tensors' own dtype before if `is_narrow`."""

    size: int
    keys: int
    block_p: int
    block_n: int
    is_narrow: bool
    precision: str  # of products that are not narrow
    state_warps: int = 4
    scan_warps: int = 8
    num_stages: int = 2


def chunk_config(dtype: torch.dtype, shared_bytes: int) -> ChunkConfig:
    """float16 has too small a range for what is multiplied here."""
    if dtype == torch.bfloat16:
        if shared_bytes >= 160 << 10:
            return ChunkConfig(128, 64, 64, 128, True, "ieee")
        return ChunkConfig(64, 64, 64, 64, True, "ieee", scan_warps=4)
    if dtype == torch.float16:
        return ChunkConfig(64, 32, 32, 64, False, "tf32", scan_warps=4)
    return ChunkConfig(32, 32, 32, 32, False, "ieee", scan_warps=4, num_stages=1)


@triton.jit
def _is_past(index, records, max_last):
    """Is there no such chunk? The last ones are counted first."""
    is_last = index < max_last
    return tl.where(is_last, index, index - max_last) >= tl.load(records + tl.where(is_last, 0, 1))


@triton.jit
def _tile_of(at, inside, NARROW: tl.constexpr):
    """As products take it: in the dtype of the tensor if that is narrow, else in float32."""
    value = tl.load(at, mask=inside, other=0.0)
    return value if NARROW else value.to(tl.float32)


@triton.jit(do_not_specialize=["max_last", "num_tokens"])
def _ssd_steps(
    dt,
    dt_bias,
    A,
    records,
    steps,
    dt_stride,
    max_last,
    num_tokens,
    low,
    high,
    H: tl.constexpr,
    HAS_LIMIT: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    RECORD: tl.constexpr,
):
    """`steps` [3, H, T]: time steps, and the sums of a chunk's exponents up to each token as two float32, since what is
    left of the difference of two long sums may be small."""
    index = tl.program_id(1)
    if _is_past(index, records, max_last):
        return
    record = records + (1 + index) * RECORD
    head = (tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H))[None, :]
    place = tl.arange(0, SIZE)[:, None]
    inside = (place < tl.load(record + 2)) & (head < H)
    token = tl.load(record + 1) + place
    bias = tl.load(dt_bias + head, mask=head < H, other=0.0)
    decay = tl.load(A + head, mask=head < H, other=0.0)
    dt_tile = tl.load(dt + token.to(tl.int64) * dt_stride + head, mask=inside, other=0.0)
    delta = time_step(dt_tile, bias, low, high, HAS_LIMIT)
    total = tl.cumsum(tl.where(inside, delta * decay, 0.0).to(tl.float64), 0)
    coarse = total.to(tl.float32)
    at = steps + head * num_tokens + token
    tl.store(at, delta, mask=inside)
    tl.store(at + H * num_tokens, coarse, mask=inside)
    tl.store(at + 2 * H * num_tokens, (total - coarse.to(tl.float64)).to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["max_last", "num_tokens"])
def _ssd_states(
    x,
    B,
    steps,
    states,
    blocks,
    fresh,
    records,
    added,
    decays,
    strides,
    state_stride,
    max_last,
    num_tokens,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    HAS_FRESH: tl.constexpr,
    IS_LAST: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NARROW: tl.constexpr,
    PRECISION: tl.constexpr,
    RECORD: tl.constexpr,
):
    """What a chunk adds to a tile of a head's state; of a last chunk, the new state."""
    index = tl.program_id(1)
    if not IS_LAST:
        index += max_last
    if _is_past(index, records, max_last):
        return
    record = records + (1 + index) * RECORD
    p_tiles: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    n_tiles: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0) % (p_tiles * n_tiles)
    head = tl.program_id(0) // (p_tiles * n_tiles)
    p = tile // n_tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tile % n_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    place = tl.arange(0, SIZE)
    first, count = tl.load(record + 1), tl.load(record + 2)
    valid = place < count
    token = first.to(tl.int64) + place
    step_at = steps + head * num_tokens + first + place
    coarse_at, fine_at = step_at + H * num_tokens, step_at + 2 * H * num_tokens
    end_at = steps + (H + head) * num_tokens + first + count - 1
    end_coarse, end_fine = tl.load(end_at), tl.load(end_at + H * num_tokens)
    coarse = tl.load(coarse_at, mask=valid, other=0.0)
    fine = tl.load(fine_at, mask=valid, other=0.0)
    weight = tl.exp((end_coarse - coarse) + (end_fine - fine)) * tl.load(step_at, mask=valid, other=0.0)
    x_at = x + (token * strides[0])[:, None] + (head * P + p)[None, :]
    value = tl.load(x_at, mask=valid[:, None] & (p < P)[None, :], other=0.0).to(tl.float32)
    value *= tl.where(valid, weight, 0.0)[:, None]
    if NARROW:
        value = value.to(x.dtype.element_ty)
    B_at = B + (token * strides[1])[:, None] + (head // GROUP * N + n)[None, :]
    into = _tile_of(B_at, valid[:, None] & (n < N)[None, :], NARROW)
    new = tl.dot(tl.trans(value), into, input_precision=PRECISION)
    decay = tl.exp(end_coarse + end_fine)
    inside = (p < P)[:, None] & (n < N)[None, :]
    at = (head * P + p)[:, None] * N + n[None, :]
    if IS_LAST:
        row = tl.load(record)
        state_at = states + tl.load(blocks + row).to(tl.int64) * state_stride + at
        was_there = inside
        if HAS_FRESH:  # with chunks before this one, `pass` has left a state here
            was_there = inside & ((tl.load(fresh + row).to(tl.int32) == 0) | (tl.load(record + 4) > 0))
        new += tl.load(state_at, mask=was_there, other=0.0).to(tl.float32) * decay
        tl.store(state_at, new.to(states.dtype.element_ty), mask=inside)
    else:
        number = (index - max_last).to(tl.int64)
        tl.store(added + number * (H * P * N) + at, new, mask=inside)
        if tile == 0:
            tl.store(decays + number * H + head, decay)


@triton.jit
def _ssd_pass(
    states,
    blocks,
    fresh,
    records,
    added,
    decays,
    before,
    state_stride,
    H: tl.constexpr,
    VALUES: tl.constexpr,
    HAS_FRESH: tl.constexpr,
    BLOCK: tl.constexpr,
    RECORD: tl.constexpr,
):
    """A program has some of a head's state, of VALUES in all. The next chunk is read while one is added."""
    if tl.program_id(1) >= tl.load(records):
        return
    record = records + (1 + tl.program_id(1)) * RECORD
    count = tl.load(record + 4)
    if count == 0:
        return
    tiles: tl.constexpr = (VALUES + BLOCK - 1) // BLOCK
    head = tl.program_id(0) // tiles
    place = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    inside = place < VALUES
    row = tl.load(record)
    state_at = states + tl.load(blocks + row).to(tl.int64) * state_stride + head * VALUES + place
    was_there = inside
    if HAS_FRESH:
        was_there = inside & (tl.load(fresh + row).to(tl.int32) == 0)
    state = tl.load(state_at, mask=was_there, other=0.0).to(tl.float32)
    at = tl.load(record + 3).to(tl.int64) * H + head
    next_new = tl.load(added + at * VALUES + place, mask=inside, other=0.0)
    next_decay = tl.load(decays + at)
    for index in range(count):
        new, decay = next_new, next_decay
        is_more = index + 1 < count
        next_new = tl.load(added + (at + H) * VALUES + place, mask=inside & is_more, other=0.0)
        next_decay = tl.load(decays + at + H, mask=is_more, other=0.0)
        tl.store(before + at * VALUES + place, state.to(before.dtype.element_ty), mask=inside)
        state = state * decay + new
        at += H
    tl.store(state_at, state.to(states.dtype.element_ty), mask=inside)


@triton.jit
def _similarity(
    C_at, B_at, is_query, is_key, group, N: tl.constexpr, BLOCK_N: tl.constexpr, NARROW: tl.constexpr, PRECISION
):
    """C of some tokens times B of others, in a group. Pointers are to the tokens' first places."""
    n = tl.arange(0, BLOCK_N)
    total = tl.zeros([C_at.shape[0], B_at.shape[0]], tl.float32)
    for first in tl.static_range(0, N, BLOCK_N):
        at = (group * N + first + n)[None, :]
        there = (first + n < N)[None, :]
        C_tile = _tile_of(C_at[:, None] + at, is_query[:, None] & there, NARROW)
        B_tile = _tile_of(B_at[:, None] + at, is_key[:, None] & there, NARROW)
        total = tl.dot(C_tile, tl.trans(B_tile), total, input_precision=PRECISION)
    return total


@triton.jit
def _attend(
    y,
    similarity,
    coarse,
    fine,
    x_at,
    step_at,
    plane,
    valid,
    is_channel,
    FIRST: tl.constexpr,
    NARROW: tl.constexpr,
    PRECISION,
):
    """y, and what it gets of the tokens from the chunk's FIRST on, of which `x_at` [keys, p] are the inputs."""
    key_coarse = tl.load(step_at + plane, mask=valid, other=0.0)
    key_fine = tl.load(step_at + 2 * plane, mask=valid, other=0.0)
    delta = tl.load(step_at, mask=valid, other=0.0)
    is_seen = tl.arange(0, y.shape[0])[:, None] >= (FIRST + tl.arange(0, valid.shape[0]))[None, :]
    fading = tl.exp((coarse[:, None] - key_coarse[None, :]) + (fine[:, None] - key_fine[None, :]))
    weights = tl.where(is_seen, similarity * fading, 0.0) * delta[None, :]
    value = _tile_of(x_at, valid[:, None] & is_channel[None, :], NARROW)
    if NARROW:
        weights = weights.to(value.dtype)
    return tl.dot(weights, value, y, input_precision=PRECISION)


@triton.jit(do_not_specialize=["max_last", "num_tokens"])
def _ssd_scan(
    x,
    B,
    C,
    D,
    steps,
    states,
    blocks,
    fresh,
    records,
    before,
    out,
    strides,
    state_stride,
    max_last,
    num_tokens,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    HAS_FRESH: tl.constexpr,
    SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NARROW: tl.constexpr,
    PRECISION: tl.constexpr,
    RECORD: tl.constexpr,
):
    """A program has a chunk and HEADS heads of a group, which share the products of C and B."""
    index = tl.program_id(1)
    if _is_past(index, records, max_last):
        return
    is_last = index < max_last
    record = records + (1 + index) * RECORD
    row, first, count = tl.load(record), tl.load(record + 1), tl.load(record + 2)
    block = tl.load(blocks + row).to(tl.int64)
    was_there = True
    if HAS_FRESH:  # with chunks before this one, `pass` has left a state here
        chunks_before = tl.load(record + 4, mask=is_last, other=0)
        was_there = (tl.load(fresh + row).to(tl.int32) == 0) | (chunks_before > 0)
    place, key, n = tl.arange(0, SIZE), tl.arange(0, KEYS), tl.arange(0, BLOCK_N)
    valid, is_key, is_later_key = place < count, key < count, KEYS + key < count
    token, key_token = first.to(tl.int64) + place, first.to(tl.int64) + key
    first_head = tl.program_id(0) * HEADS
    group = first_head // GROUP
    C_at, B_at = C + token * strides[2], B + key_token * strides[1]
    similarity = _similarity(C_at, B_at, valid, is_key, group, N, BLOCK_N, NARROW, PRECISION)
    if SIZE > KEYS:
        B_at += KEYS * strides[1]
        later_similarity = _similarity(C_at, B_at, valid, is_later_key, group, N, BLOCK_N, NARROW, PRECISION)
    p_tiles: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    plane = H * num_tokens
    for part in range(HEADS * p_tiles):
        head = first_head + part // p_tiles
        p = part % p_tiles * BLOCK_P + tl.arange(0, BLOCK_P)
        step_at = steps + head * num_tokens + first
        coarse = tl.load(step_at + plane + place, mask=valid, other=0.0)
        fine = tl.load(step_at + 2 * plane + place, mask=valid, other=0.0)
        y = tl.zeros([SIZE, BLOCK_P], tl.float32)
        for first_n in tl.static_range(0, N, BLOCK_N):
            is_n = (first_n + n < N)[None, :]
            at = (head * P + p)[:, None] * N + (first_n + n)[None, :]
            is_state = (p < P)[:, None] & is_n
            if is_last:
                state = tl.load(states + block * state_stride + at, mask=is_state & was_there, other=0.0)
                state = state.to(before.dtype.element_ty)
            else:
                state = tl.load(before + (index - max_last).to(tl.int64) * (H * P * N) + at, mask=is_state, other=0.0)
            C_tile = _tile_of(C_at[:, None] + (group * N + first_n + n)[None, :], valid[:, None] & is_n, NARROW)
            y = tl.dot(C_tile, tl.trans(state), y, input_precision=PRECISION)
        y *= tl.exp(coarse + fine)[:, None]
        x_at = x + (head * P + p)[None, :]
        key_at = x_at + (key_token * strides[0])[:, None]
        y = _attend(y, similarity, coarse, fine, key_at, step_at + key, plane, is_key, p < P, 0, NARROW, PRECISION)
        if SIZE > KEYS:
            y = _attend(
                y,
                later_similarity,
                coarse,
                fine,
                key_at + KEYS * strides[0],
                step_at + KEYS + key,
                plane,
                is_later_key,
                p < P,
                KEYS,
                NARROW,
                PRECISION,
            )
        inside = valid[:, None] & (p < P)[None, :]
        value = tl.load(x_at + (token * strides[0])[:, None], mask=inside, other=0.0).to(tl.float32)
        y += value * tl.load(D + head)
        tl.store(out + ((token * H + head) * P)[:, None] + p[None, :], y.to(out.dtype.element_ty), mask=inside)


def chunked_ssd(
    x_THP: torch.Tensor,
    dt_TH: torch.Tensor,
    dt_bias_H: torch.Tensor,
    dt_limit: tuple[float, float],
    A_H: torch.Tensor,
    B_TGN: torch.Tensor,
    C_TGN: torch.Tensor,
    D_H: torch.Tensor,
    states: torch.Tensor,
    rows: StateRows,
    out_THP: torch.Tensor,
    chunks: Chunks,
    config: ChunkConfig,
) -> None:
    """ops/ssm.py's `ssd` of the rows that `chunks` lists. Other places of `out_THP` and `states` stay as they are."""
    num_tokens, num_heads, head_dim = x_THP.shape
    num_groups, state_size = B_TGN.shape[1:]
    device, max_last, max_full = x_THP.device, chunks.max_last, chunks.max_full
    sizes = {"H": num_heads, "GROUP": num_heads // num_groups, "P": head_dim, "N": state_size}
    tiles = {
        "HAS_FRESH": rows.fresh is not None,
        "SIZE": config.size,
        "BLOCK_P": min(config.block_p, max(16, triton.next_power_of_2(head_dim))),
        "BLOCK_N": min(config.block_n, max(16, triton.next_power_of_2(state_size))),
        "NARROW": config.is_narrow,
        "PRECISION": config.precision,
        "RECORD": RECORD,
        "num_stages": config.num_stages,
    }
    steps = torch.empty(3, num_heads, num_tokens, dtype=torch.float32, device=device)
    shape = (max_full, num_heads, head_dim, state_size)
    added = torch.empty(shape, dtype=torch.float32, device=device)
    before = torch.empty(shape, dtype=x_THP.dtype if config.is_narrow else torch.float32, device=device)
    decays = torch.empty(shape[:2], dtype=torch.float32, device=device)
    strides = (x_THP.stride(0), B_TGN.stride(0), C_TGN.stride(0))
    where = (rows.blocks, rows.fresh, chunks.records)
    block_h = min(8, triton.next_power_of_2(num_heads))
    _ssd_steps[(triton.cdiv(num_heads, block_h), max_last + max_full)](
        dt_TH,
        dt_bias_H,
        A_H,
        chunks.records,
        steps,
        dt_TH.stride(0),
        max_last,
        num_tokens,
        *dt_limit,
        H=num_heads,
        HAS_LIMIT=dt_limit != (0.0, math.inf),
        SIZE=config.size,
        BLOCK_H=block_h,
        RECORD=RECORD,
        num_warps=4,
    )

    def compute_states(is_last: bool) -> None:
        programs = num_heads * triton.cdiv(head_dim, tiles["BLOCK_P"]) * triton.cdiv(state_size, tiles["BLOCK_N"])
        _ssd_states[(programs, max_last if is_last else max_full)](
            x_THP,
            B_TGN,
            steps,
            states,
            *where,
            added,
            decays,
            strides[:2],
            states.stride(0),
            max_last,
            num_tokens,
            **sizes,
            **tiles,
            IS_LAST=is_last,
            num_warps=config.state_warps,
        )

    if max_full:
        compute_states(is_last=False)
        values = head_dim * state_size
        block = min(512, triton.next_power_of_2(values))
        _ssd_pass[(num_heads * triton.cdiv(values, block), max_last)](
            states,
            *where,
            added,
            decays,
            before,
            states.stride(0),
            H=num_heads,
            VALUES=values,
            HAS_FRESH=rows.fresh is not None,
            BLOCK=block,
            RECORD=RECORD,
            num_warps=4,
        )
    heads = math.gcd(num_heads // num_groups, 4 if (max_last + max_full) * num_heads >= SHARED_HEADS else 1)
    _ssd_scan[(num_heads // heads, max_last + max_full)](
        x_THP,
        B_TGN,
        C_TGN,
        D_H,
        steps,
        states,
        *where,
        before,
        out_THP,
        strides,
        states.stride(0),
        max_last,
        num_tokens,
        **sizes,
        **tiles,
        KEYS=config.keys,
        HEADS=heads,
        num_warps=config.scan_warps,
    )
    compute_states(is_last=True)
