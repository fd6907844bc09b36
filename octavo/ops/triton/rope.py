"""Norm of q and k, rotation and the cache write in one kernel: a program has one token and several heads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.ops.triton.chain import follow, launch_options


@triton.jit
def _slot_in(cache_ptr, slot, cache_block_stride, cache_offset_stride, BLOCK_SIZE: tl.constexpr):
    """Where a token's keys start."""
    return cache_ptr + (slot // BLOCK_SIZE) * cache_block_stride + (slot % BLOCK_SIZE) * cache_offset_stride


@triton.jit
def _part(ptr, norm_ptr, head, column, inside, scale, offset, HAS_NORM: tl.constexpr, HAS_OFFSET: tl.constexpr):
    """Some columns of several heads in float32; normalised, by `scale` [heads, 1], if asked."""
    x = tl.load(ptr, mask=inside, other=0.0)
    wide = x.to(tl.float32)
    if HAS_NORM:
        weight = tl.load(norm_ptr + column, mask=inside & (head >= 0), other=0.0).to(tl.float32)
        if HAS_OFFSET:
            wide = (wide * scale * (weight + offset)).to(x.dtype).to(tl.float32)
        else:
            wide = ((wide * scale).to(x.dtype).to(tl.float32) * weight).to(x.dtype).to(tl.float32)
    return wide


@triton.jit
def _rotate_heads(
    x_ptr,
    x_head_stride,
    out_ptr,
    out_head_stride,
    norm_ptr,
    cos_sin_ptr,
    head,
    num_heads,
    is_written,
    eps,
    offset,
    HAS_NORM: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    HALF_WIDTH: tl.constexpr,
    REST_WIDTH: tl.constexpr,
):
    """Heads `head` [h, 1] at x_ptr, normalised and rotated, to out_ptr; what is past the rotated part goes along."""
    place = tl.arange(0, HALF_WIDTH)[None, :]
    inside = (head < num_heads) & (place < HALF)
    cos = tl.load(cos_sin_ptr + place, mask=place < HALF, other=0.0)
    sin = tl.load(cos_sin_ptr + HALF + place, mask=place < HALF, other=0.0)
    first_ptr = x_ptr + head * x_head_stride + place
    scale = tl.zeros(head.shape, tl.float32)
    if REST_WIDTH > 0:
        rest_place = 2 * HALF + tl.arange(0, REST_WIDTH)[None, :]
        rest_inside = (head < num_heads) & (rest_place < SIZE)
        rest_ptr = x_ptr + head * x_head_stride + rest_place
    if HAS_NORM:
        first = tl.load(first_ptr, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(first_ptr + HALF, mask=inside, other=0.0).to(tl.float32)
        squares = tl.sum(first * first + second * second, 1)
        if REST_WIDTH > 0:
            rest = tl.load(rest_ptr, mask=rest_inside, other=0.0).to(tl.float32)
            squares += tl.sum(rest * rest, 1)
        scale = tl.rsqrt(squares / SIZE + eps)[:, None]
    first = _part(first_ptr, norm_ptr, head, place, inside, scale, offset, HAS_NORM, HAS_OFFSET)
    second = _part(first_ptr + HALF, norm_ptr, head, HALF + place, inside, scale, offset, HAS_NORM, HAS_OFFSET)
    out_ptr += head * out_head_stride
    dtype = x_ptr.dtype.element_ty  # rounded to it before the dtype of a cache
    out_dtype = out_ptr.dtype.element_ty
    turned = (first * cos - second * sin).to(dtype).to(out_dtype)
    tl.store(out_ptr + place, turned, mask=inside & is_written)
    turned = (second * cos + first * sin).to(dtype).to(out_dtype)
    tl.store(out_ptr + HALF + place, turned, mask=inside & is_written)
    if REST_WIDTH > 0:
        rest = _part(rest_ptr, norm_ptr, head, rest_place, rest_inside, scale, offset, HAS_NORM, HAS_OFFSET)
        tl.store(out_ptr + rest_place, rest.to(dtype).to(out_dtype), mask=rest_inside & is_written)


@triton.jit
def _copy_heads(x_ptr, x_head_stride, out_ptr, out_head_stride, head, num_heads, is_written, SIZE, WIDTH: tl.constexpr):
    place = tl.arange(0, WIDTH)[None, :]
    inside = (head < num_heads) & (place < SIZE) & is_written
    x = tl.load(x_ptr + head * x_head_stride + place, mask=inside, other=0.0)
    tl.store(out_ptr + head * out_head_stride + place, x.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rope_and_write(
    q_ptr,
    k_ptr,
    v_ptr,
    q_strides,
    k_strides,
    v_strides,
    positions_ptr,
    cos_sin_ptr,
    cache_ptr,
    cache_strides,
    slots_ptr,
    q_norm_ptr,
    k_norm_ptr,
    out_ptr,
    num_heads,
    num_kv_heads,
    eps,
    offset,
    HAS_Q_NORM: tl.constexpr,
    HAS_K_NORM: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    HALF_WIDTH: tl.constexpr,
    REST_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    CHAIN: tl.constexpr,
):
    """The first programs of a token have its query heads, the others keys and values."""
    follow(CHAIN)
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    num_query_parts = tl.cdiv(num_heads, HEADS)
    cos_sin_ptr += tl.load(positions_ptr + token) * (2 * HALF)
    if part < num_query_parts:
        head = part * HEADS + tl.arange(0, HEADS)[:, None]
        _rotate_heads(
            q_ptr + token * q_strides[0],
            q_strides[1],
            out_ptr + token * num_heads * SIZE,
            SIZE,
            q_norm_ptr,
            cos_sin_ptr,
            head,
            num_heads,
            True,
            eps,
            offset,
            HAS_Q_NORM,
            HAS_OFFSET,
            SIZE,
            HALF,
            HALF_WIDTH,
            REST_WIDTH,
        )
    else:
        head = (part - num_query_parts) * HEADS + tl.arange(0, HEADS)[:, None]
        slot = tl.load(slots_ptr + token)
        key_ptr = _slot_in(cache_ptr, slot, cache_strides[0], cache_strides[2], BLOCK_SIZE)
        _rotate_heads(
            k_ptr + token * k_strides[0],
            k_strides[1],
            key_ptr,
            cache_strides[3],
            k_norm_ptr,
            cos_sin_ptr,
            head,
            num_kv_heads,
            slot >= 0,
            eps,
            offset,
            HAS_K_NORM,
            HAS_OFFSET,
            SIZE,
            HALF,
            HALF_WIDTH,
            REST_WIDTH,
        )
        value_ptr = key_ptr + cache_strides[1]
        v_ptr += token * v_strides[0]
        _copy_heads(v_ptr, v_strides[1], value_ptr, cache_strides[3], head, num_kv_heads, slot >= 0, SIZE, WIDTH)


@triton.jit
def _write_kv(
    k_ptr,
    v_ptr,
    k_strides,
    v_strides,
    cache_ptr,
    cache_strides,
    slots_ptr,
    num_kv_heads,
    BLOCK_SIZE: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    slot = tl.load(slots_ptr + token)
    key_ptr = _slot_in(cache_ptr, slot, cache_strides[0], cache_strides[2], BLOCK_SIZE)
    value_ptr = key_ptr + cache_strides[1]
    k_ptr += token * k_strides[0]
    v_ptr += token * v_strides[0]
    _copy_heads(k_ptr, k_strides[1], key_ptr, cache_strides[3], head, num_kv_heads, slot >= 0, SIZE, WIDTH)
    _copy_heads(v_ptr, v_strides[1], value_ptr, cache_strides[3], head, num_kv_heads, slot >= 0, SIZE, WIDTH)


def _heads_of_program(num_tokens: int, num_heads: int) -> int:
    """Few where tokens are few, so that they spread over the device."""
    return min(triton.next_power_of_2(num_heads), 2 if num_tokens <= 16 else 4 if num_tokens <= 256 else 8)


def rope_and_write(
    q_TNH: torch.Tensor,
    k_TKH: torch.Tensor,
    v_TKH: torch.Tensor,
    positions_T: torch.Tensor,
    cos_sin: torch.Tensor,
    cache: torch.Tensor,
    slots_T: torch.Tensor,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 0.0,
    weight_offset: float = 0.0,
    tile_rows: int | None = None,
) -> torch.Tensor:
    """Tiles are as for `tile_rows` tokens, if it says how many."""
    num_tokens, num_heads, size = q_TNH.shape
    num_kv_heads, half = k_TKH.shape[1], cos_sin.shape[1] // 2
    out = torch.empty(q_TNH.shape, dtype=q_TNH.dtype, device=q_TNH.device)
    if not num_tokens:
        return out
    heads = _heads_of_program(tile_rows or num_tokens, num_heads)
    rest = size - 2 * half
    _rope_and_write[(num_tokens, triton.cdiv(num_heads, heads) + triton.cdiv(num_kv_heads, heads))](
        q_TNH,
        k_TKH,
        v_TKH,
        q_TNH.stride()[:2],
        k_TKH.stride()[:2],
        v_TKH.stride()[:2],
        positions_T,
        cos_sin,
        cache,
        cache.stride()[:4],
        slots_T,
        q_TNH if q_norm is None else q_norm,
        k_TKH if k_norm is None else k_norm,
        out,
        num_heads,
        num_kv_heads,
        eps,
        weight_offset,
        HAS_Q_NORM=q_norm is not None,
        HAS_K_NORM=k_norm is not None,
        HAS_OFFSET=weight_offset != 0,
        BLOCK_SIZE=cache.shape[2],
        SIZE=size,
        HALF=half,
        HALF_WIDTH=triton.next_power_of_2(half),
        REST_WIDTH=triton.next_power_of_2(rest) if rest else 0,
        WIDTH=triton.next_power_of_2(size),
        HEADS=heads,
        num_warps=1 if heads <= 4 else 2,
        **launch_options(),
    )
    return out


def write_kv(k_TKH: torch.Tensor, v_TKH: torch.Tensor, cache: torch.Tensor, slots_T: torch.Tensor) -> None:
    num_tokens, num_kv_heads, size = k_TKH.shape
    if not num_tokens:
        return
    heads = _heads_of_program(num_tokens, num_kv_heads)
    _write_kv[(num_tokens, triton.cdiv(num_kv_heads, heads))](
        k_TKH,
        v_TKH,
        k_TKH.stride()[:2],
        v_TKH.stride()[:2],
        cache,
        cache.stride()[:4],
        slots_T,
        num_kv_heads,
        BLOCK_SIZE=cache.shape[2],
        SIZE=size,
        WIDTH=triton.next_power_of_2(size),
        HEADS=heads,
        num_warps=1 if heads <= 4 else 2,
    )
