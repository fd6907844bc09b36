"""Mamba-2's state-space dual in Triton. Rows of up to SHORT_TOKENS tokens go token by token, with a tile of the state in
registers. Longer ones go by chunks, four kernels of matrix products (arXiv 2405.21060, section 6):

    states      full chunks: what their tokens add to a state that was zero before
    pass        long rows: the state before each full chunk, chunk after chunk, and before the last one
    scan        all chunks: y, from the state before and from the tokens inside
    states      last chunks: the rows' new states, where they lie

A long row's place in `states` is thus: its state before the step; before its last chunk; after the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.ops.state_rows import SHORT_TOKENS, StateRows
from octavo.ops.torch import ssm as specification
from octavo.ops.triton.attention_work import device_limits
from octavo.ops.triton.chain import follow, launch_options
from octavo.ops.triton.ssm_work import RECORD, Chunks, list_chunks, softplus

# ---- how -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChunkConfig:
    """How chunks of `size` tokens are computed: products of tiles of `block_p` channels of a head by `block_n` places of
    its state, with inputs rounded to the tensors' own dtype if `narrow`."""

    size: int
    block_p: int
    block_n: int
    narrow: bool
    precision: str
    state_warps: int = 4
    scan_warps: int = 8
    num_stages: int = 2


def chunk_config(dtype: torch.dtype, shared_bytes: int) -> ChunkConfig:
    """float16 has too small a range for what is multiplied here."""
    if dtype == torch.bfloat16:
        if shared_bytes >= 160 << 10:
            return ChunkConfig(128, 64, 128, True, "ieee")
        return ChunkConfig(64, 64, 64, True, "ieee", scan_warps=4)
    if dtype == torch.float16:
        return ChunkConfig(64, 64, 64, False, "tf32", scan_warps=4)
    return ChunkConfig(32, 32, 32, False, "ieee", scan_warps=4, num_stages=1)


# ---- arithmetic ------------------------------------------------------------------------------------------------------


@triton.jit
def _time_step(dt, bias, low, high, HAS_LIMIT: tl.constexpr):
    delta = softplus(dt.to(tl.float32) + bias)
    if HAS_LIMIT:  # NaN stays NaN
        delta = tl.where(delta < low, low, delta)
        delta = tl.where(delta > high, high, delta)
    return delta


@triton.jit
def _chunk_steps(dt_at, valid, bias, low, high, decay, HAS_LIMIT: tl.constexpr):
    """Of a chunk's tokens: the time step, and the sum of the exponents up to there as two float32. What is left of the
    difference of two long sums may be small. Places past the end neither decay nor add."""
    delta = _time_step(tl.load(dt_at, mask=valid, other=0.0), bias, low, high, HAS_LIMIT)
    delta = tl.where(valid, delta, 0.0)
    total = tl.cumsum((delta * decay).to(tl.float64), 0)
    coarse = total.to(tl.float32)
    return delta, coarse, (total - coarse.to(tl.float64)).to(tl.float32)


# ---- rows of few tokens ----------------------------------------------------------------------------------------------


@triton.jit
def _ssd_short(
    x,
    dt,
    dt_bias,
    A,
    B,
    C,
    D,
    states,
    blocks,
    fresh,
    query_start,
    out,
    strides,
    state_stride,
    low,
    high,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    HAS_LIMIT: tl.constexpr,
    HAS_FRESH: tl.constexpr,
    IS_DECODE: tl.constexpr,
    SHORT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHAIN: tl.constexpr,
):
    """A program has a tile of a row's state, of one head."""
    follow(CHAIN)
    tiles: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    head = tl.program_id(0) // tiles
    row = tl.program_id(1)
    begin = row.to(tl.int64)
    if not IS_DECODE:
        begin = tl.load(query_start + row).to(tl.int64)
    end = tl.load(query_start + row + 1).to(tl.int64)
    if (end <= begin) | (end - begin > SHORT):
        return
    p = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N)
    inside = (p < P)[:, None] & (n < N)[None, :]
    block = tl.load(blocks + row).to(tl.int64)
    state_at = states + block * state_stride + (head * P + p)[:, None] * N + n[None, :]
    was_there = inside
    if HAS_FRESH:
        was_there = inside & (tl.load(fresh + row).to(tl.int32) == 0)
    state = tl.load(state_at, mask=was_there, other=0.0).to(tl.float32)
    bias, decay, skip = tl.load(dt_bias + head), tl.load(A + head), tl.load(D + head)
    place = head // GROUP * N + n
    for token in range(begin, end):
        value = tl.load(x + token * strides[0] + head * P + p, mask=p < P, other=0.0).to(tl.float32)
        into = tl.load(B + token * strides[2] + place, mask=n < N, other=0.0).to(tl.float32)
        out_of = tl.load(C + token * strides[3] + place, mask=n < N, other=0.0).to(tl.float32)
        delta = _time_step(tl.load(dt + token * strides[1] + head), bias, low, high, HAS_LIMIT)
        state = tl.exp(delta * decay) * state + (delta * value)[:, None] * into[None, :]
        y = tl.sum(state * out_of[None, :], 1) + skip * value
        tl.store(out + (token * H + head) * P + p, y.to(out.dtype.element_ty), mask=p < P)
    tl.store(state_at, state.to(states.dtype.element_ty), mask=inside)


# ---- chunks of long rows ---------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["max_last"])
def _ssd_states(
    x,
    dt,
    dt_bias,
    A,
    B,
    states,
    blocks,
    fresh,
    records,
    added,
    decays,
    strides,
    state_stride,
    max_last,
    low,
    high,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    HAS_LIMIT: tl.constexpr,
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
    if IS_LAST:
        if index >= tl.load(records):
            return
        record = records + (1 + index) * RECORD
    else:
        if index >= tl.load(records + 1):
            return
        record = records + (1 + max_last + index) * RECORD
    p_tiles: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    n_tiles: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    head = tl.program_id(0) // (p_tiles * n_tiles)
    p = tl.program_id(0) // n_tiles % p_tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tl.program_id(0) % n_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    place = tl.arange(0, SIZE)
    valid = place < tl.load(record + 2)
    token = tl.load(record + 1).to(tl.int64) + place
    delta, coarse, fine = _chunk_steps(
        dt + token * strides[1] + head,
        valid,
        tl.load(dt_bias + head),
        low,
        high,
        tl.load(A + head),
        HAS_LIMIT,
    )
    end_coarse = tl.sum(tl.where(place == SIZE - 1, coarse, 0.0), 0)
    end_fine = tl.sum(tl.where(place == SIZE - 1, fine, 0.0), 0)
    weight = tl.exp((end_coarse - coarse) + (end_fine - fine)) * delta
    x_at = x + (token * strides[0])[:, None] + (head * P + p)[None, :]
    value = tl.load(x_at, mask=valid[:, None] & (p < P)[None, :], other=0.0).to(tl.float32) * weight[:, None]
    B_at = B + (token * strides[2])[:, None] + (head // GROUP * N + n)[None, :]
    into = tl.load(B_at, mask=valid[:, None] & (n < N)[None, :], other=0.0)
    if NARROW:
        value = value.to(x.dtype.element_ty)
    else:
        into = into.to(tl.float32)
    new = tl.dot(tl.trans(value), into, input_precision=PRECISION)
    decay = tl.exp(end_coarse + end_fine)
    inside = (p < P)[:, None] & (n < N)[None, :]
    if IS_LAST:
        row = tl.load(record)
        at = states + tl.load(blocks + row).to(tl.int64) * state_stride + (head * P + p)[:, None] * N + n[None, :]
        was_there = inside
        if HAS_FRESH:  # with chunks before this one, `pass` has left a state here
            was_there = inside & ((tl.load(fresh + row).to(tl.int32) == 0) | (tl.load(record + 4) > 0))
        new += tl.load(at, mask=was_there, other=0.0).to(tl.float32) * decay
        tl.store(at, new.to(states.dtype.element_ty), mask=inside)
    else:
        at = added + ((index.to(tl.int64) * H + head) * P + p)[:, None] * N + n[None, :]
        tl.store(at, new, mask=inside)
        if (tl.program_id(0) % (p_tiles * n_tiles)) == 0:
            tl.store(decays + index * H + head, decay)


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
    record = records + (1 + tl.program_id(1)) * RECORD
    if tl.program_id(1) >= tl.load(records):
        return
    first, count = tl.load(record + 3), tl.load(record + 4)
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
    chunk = first.to(tl.int64)
    next_new = tl.load(added + (chunk * H + head) * VALUES + place, mask=inside, other=0.0)
    next_decay = tl.load(decays + chunk * H + head)
    for index in range(0, count):
        new, decay = next_new, next_decay
        at = (chunk + index) * H + head
        following = at + H
        is_more = index + 1 < count
        next_new = tl.load(added + following * VALUES + place, mask=inside & is_more, other=0.0)
        next_decay = tl.load(decays + following, mask=is_more, other=0.0)
        tl.store(before + at * VALUES + place, state.to(before.dtype.element_ty), mask=inside)
        state = state * decay + new
    tl.store(state_at, state.to(states.dtype.element_ty), mask=inside)


@triton.jit
def _tile_of(at, inside, NARROW: tl.constexpr, dtype: tl.constexpr):
    """As products take it."""
    value = tl.load(at, mask=inside, other=0.0)
    return value.to(dtype) if NARROW else value.to(tl.float32)


@triton.jit(do_not_specialize=["max_last"])
def _ssd_scan(
    x,
    dt,
    dt_bias,
    A,
    B,
    C,
    D,
    states,
    blocks,
    fresh,
    records,
    before,
    out,
    strides,
    state_stride,
    max_last,
    low,
    high,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    HAS_LIMIT: tl.constexpr,
    HAS_FRESH: tl.constexpr,
    SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NARROW: tl.constexpr,
    PRECISION: tl.constexpr,
    RECORD: tl.constexpr,
):
    """A program has a chunk and HEADS heads of a group, which share the products of C and B."""
    index = tl.program_id(1)
    is_last = index < max_last
    if is_last:
        if index >= tl.load(records):
            return
    else:
        if index - max_last >= tl.load(records + 1):
            return
    dtype: tl.constexpr = x.dtype.element_ty
    n_tiles: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    p_tiles: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    record = records + (1 + index) * RECORD
    row = tl.load(record)
    block = tl.load(blocks + row).to(tl.int64)
    is_fresh = False
    if HAS_FRESH:  # a state that `pass` has left is one
        is_fresh = (tl.load(fresh + row).to(tl.int32) != 0) & (tl.load(record + 4) == 0)
    place = tl.arange(0, SIZE)
    valid = place < tl.load(record + 2)
    token = tl.load(record + 1).to(tl.int64) + place
    n = tl.arange(0, BLOCK_N)
    first_head = tl.program_id(0) * HEADS
    group = first_head // GROUP
    B_at = B + (token * strides[2])[:, None] + (group * N + n)[None, :]
    C_at = C + (token * strides[3])[:, None] + (group * N + n)[None, :]
    C_tile = _tile_of(C_at, valid[:, None] & (n < N)[None, :], NARROW, dtype)
    B_tile = _tile_of(B_at, valid[:, None] & (n < N)[None, :], NARROW, dtype)
    similar = tl.dot(C_tile, tl.trans(B_tile), input_precision=PRECISION)
    for tile in tl.static_range(1, n_tiles):
        inside = valid[:, None] & (tile * BLOCK_N + n < N)[None, :]
        C_part = _tile_of(C_at + tile * BLOCK_N, inside, NARROW, dtype)
        B_part = _tile_of(B_at + tile * BLOCK_N, inside, NARROW, dtype)
        similar = tl.dot(C_part, tl.trans(B_part), similar, input_precision=PRECISION)
    is_seen = place[:, None] >= place[None, :]
    for part in range(0, HEADS * p_tiles):
        head = first_head + part // p_tiles
        p = part % p_tiles * BLOCK_P + tl.arange(0, BLOCK_P)
        delta, coarse, fine = _chunk_steps(
            dt + token * strides[1] + head,
            valid,
            tl.load(dt_bias + head),
            low,
            high,
            tl.load(A + head),
            HAS_LIMIT,
        )
        fading = tl.exp((coarse[:, None] - coarse[None, :]) + (fine[:, None] - fine[None, :]))
        weights = tl.where(is_seen, similar * fading, 0.0) * delta[None, :]
        inside = valid[:, None] & (p < P)[None, :]
        value = _tile_of(x + (token * strides[0])[:, None] + (head * P + p)[None, :], inside, NARROW, dtype)
        if NARROW:
            weights = weights.to(dtype)
        y = tl.dot(weights, value, input_precision=PRECISION)
        from_state = tl.zeros([SIZE, BLOCK_P], tl.float32)
        for tile in tl.static_range(n_tiles):
            at = (head * P + p)[:, None] * N + (tile * BLOCK_N + n)[None, :]
            there = (p < P)[:, None] & (tile * BLOCK_N + n < N)[None, :]
            if is_last:
                state = _tile_of(states + block * state_stride + at, there & (is_fresh == 0), NARROW, dtype)
            else:
                number = (index - max_last).to(tl.int64)
                state = _tile_of(before + number * (H * P * N) + at, there, NARROW, dtype)
            if n_tiles > 1:
                C_tile = _tile_of(
                    C_at + tile * BLOCK_N, valid[:, None] & (tile * BLOCK_N + n < N)[None, :], NARROW, dtype
                )
            from_state = tl.dot(C_tile, tl.trans(state), from_state, input_precision=PRECISION)
        y += from_state * tl.exp(coarse + fine)[:, None] + value.to(tl.float32) * tl.load(D + head)
        out_at = out + ((token * H + head) * P)[:, None] + p[None, :]
        tl.store(out_at, y.to(dtype), mask=inside)


# ---- the op ----------------------------------------------------------------------------------------------------------


def ssd(
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
    return_states: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """States after each token come from the specification, in steps without padding. In bfloat16, long rows round what
    they multiply; sums and states are float32."""
    if return_states:
        return specification.ssd(x_THP, dt_TH, dt_bias_H, dt_limit, A_H, B_TGN, C_TGN, D_H, states, rows, True)
    num_tokens, num_heads, head_dim = x_THP.shape
    num_groups, state_size = B_TGN.shape[1:]
    bounds = rows.bounds
    out = torch.empty(x_THP.shape, dtype=x_THP.dtype, device=x_THP.device)
    tokens = (x_THP, dt_TH, B_TGN, C_TGN)
    strides = tuple(part.stride(0) for part in tokens)
    sizes = {
        "H": num_heads,
        "GROUP": num_heads // num_groups,
        "P": head_dim,
        "N": state_size,
        "HAS_LIMIT": dt_limit != (0.0, math.inf),
        "HAS_FRESH": rows.fresh is not None,
    }
    block_n = triton.next_power_of_2(state_size)
    block_p = min(triton.next_power_of_2(head_dim), max(1, 4096 // block_n))
    while block_p > 8 and rows.num_rows * num_heads * triton.cdiv(head_dim, block_p) < 512:
        block_p //= 2
    _ssd_short[(num_heads * triton.cdiv(head_dim, block_p), rows.num_rows)](
        x_THP,
        dt_TH,
        dt_bias_H,
        A_H,
        B_TGN,
        C_TGN,
        D_H,
        states,
        rows.blocks,
        rows.fresh,
        rows.query_start,
        out,
        strides,
        states.stride(0),
        *dt_limit,
        **sizes,
        IS_DECODE=bounds.is_decode,
        SHORT=1 if bounds.is_decode else SHORT_TOKENS,
        BLOCK_P=block_p,
        BLOCK_N=block_n,
        num_warps=max(1, min(4, block_p * block_n // 1024)),
        **launch_options(),
    )
    if not bounds.long_rows:
        return out, None
    config = chunk_config(x_THP.dtype, device_limits(x_THP.device).shared_bytes)
    chunks = list_chunks(rows, num_tokens, config.size)
    _ssd_long(x_THP, dt_TH, dt_bias_H, dt_limit, A_H, B_TGN, C_TGN, D_H, states, rows, out, chunks, config, sizes)
    return out, None


def _ssd_long(
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
    sizes: dict[str, int | bool],
) -> None:
    """The rows of more than SHORT_TOKENS tokens."""
    num_heads, head_dim, state_size = states.shape[1:]
    device = x_THP.device
    strides = (x_THP.stride(0), dt_TH.stride(0), B_TGN.stride(0), C_TGN.stride(0))
    block_p = min(config.block_p, max(16, triton.next_power_of_2(head_dim)))
    block_n = min(config.block_n, max(16, triton.next_power_of_2(state_size)))
    tiles = {"BLOCK_P": block_p, "BLOCK_N": block_n, "NARROW": config.narrow, "PRECISION": config.precision}
    common = {**sizes, **tiles, "SIZE": config.size, "RECORD": RECORD, "num_stages": config.num_stages}
    shape = (chunks.max_full, num_heads, head_dim, state_size)
    added = torch.empty(shape, dtype=torch.float32, device=device)
    before = torch.empty(shape, dtype=x_THP.dtype if config.narrow else torch.float32, device=device)
    decays = torch.empty(shape[:2], dtype=torch.float32, device=device)
    programs = num_heads * triton.cdiv(head_dim, block_p) * triton.cdiv(state_size, block_n)

    def add_chunks(is_last: bool) -> None:
        _ssd_states[(programs, chunks.max_last if is_last else chunks.max_full)](
            x_THP,
            dt_TH,
            dt_bias_H,
            A_H,
            B_TGN,
            states,
            rows.blocks,
            rows.fresh,
            chunks.records,
            added,
            decays,
            strides,
            states.stride(0),
            chunks.max_last,
            *dt_limit,
            **common,
            IS_LAST=is_last,
            num_warps=config.state_warps,
        )

    if chunks.max_full:
        add_chunks(is_last=False)
        values = head_dim * state_size
        block = min(512, triton.next_power_of_2(values))
        _ssd_pass[(num_heads * triton.cdiv(values, block), chunks.max_last)](
            states,
            rows.blocks,
            rows.fresh,
            chunks.records,
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
    num_chunks = chunks.max_last + chunks.max_full
    heads = math.gcd(num_heads // B_TGN.shape[1], 4 if num_chunks * num_heads >= 2048 else 1)
    _ssd_scan[(num_heads // heads, num_chunks)](
        x_THP,
        dt_TH,
        dt_bias_H,
        A_H,
        B_TGN,
        C_TGN,
        D_H,
        states,
        rows.blocks,
        rows.fresh,
        chunks.records,
        before,
        out_THP,
        strides,
        states.stride(0),
        chunks.max_last,
        *dt_limit,
        **common,
        HEADS=heads,
        num_warps=config.scan_warps,
    )
    add_chunks(is_last=True)
