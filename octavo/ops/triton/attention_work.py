"""What attention has to do in a step, listed on the device, and how the kernels are to do it.

A step's rows are cut into pieces of work from query_start and seq_lens alone, so that a captured graph with padded
bounds serves every mixture:

    rows          decode items (row, range of keys)      prefill tiles (row, range of query tokens)
    1 of 1000     0: keys 0:512    1: keys 512:1000      -
    1 of 300      2: keys 0:300                          -
    70 of 400     -                                      0: tokens 64:70   1: tokens 32:64   2: tokens 0:32
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
import triton
import triton.language as tl

LOG2E = math.log2(math.e)
RECORD = 16  # int32 places of a decode item or prefill tile; the first record holds their number
LIST_PROGRAMS = 16  # of `list_work`: each finds all offsets and writes its share of the records
DECODE_TOKENS = 4  # query tokens of a row that the decode kernel takes, unless told otherwise

# ---- how ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecodeConfig:
    """How the decode kernel runs. `fill` programs are aimed at: where there are fewer rows than that, they are split,
    but into no fewer than `min_chunk` keys each. More than `max_programs` are never launched: programs loop.

    Or, as a `stream`, all keys of all rows are cut into `fill` equal shares, wherever rows end; a program has a share:

        rows      0 0 0 0 0 0 0 0 | 1 1 1 1 | 2 2 2 2 2 2
        programs  0 0 0 0 0 0 1 1 | 1 1 1 1 | 2 2 2 2 2 2
    """

    block_n: int = 64
    num_warps: int = 4
    num_stages: int = 3
    fill: int = 1056
    min_chunk: int = 128
    max_programs: int = 2112
    fused: bool = True
    stream: bool = False


@dataclass(frozen=True)
class PrefillConfig:
    """How the prefill kernel runs: `block_m` places of (query token, head of the group) by `block_n` keys a tile."""

    block_m: int = 128
    block_n: int = 128
    num_warps: int = 8
    num_stages: int = 3
    max_registers: int | None = None  # of a thread; None: the compiler decides


# Best first; the first that fits into a processor's shared memory serves. By bytes of a key (BLOCK_H * itemsize).
# Tiles of float32 are small because its products run without matrix units, in registers.
_PREFILL = {
    128: (PrefillConfig(), PrefillConfig(block_n=64)),
    256: (
        PrefillConfig(),
        PrefillConfig(block_n=64),
        PrefillConfig(block_n=64, num_stages=2),
        PrefillConfig(block_n=32),
    ),
    512: (PrefillConfig(block_n=32), PrefillConfig(block_m=64, block_n=32, num_warps=4, num_stages=2)),
}
_PREFILL_FLOAT32 = PrefillConfig(block_m=32, block_n=32, num_warps=8, num_stages=1)


# For steps of few rows: (most rows, how), where `fill` counts programs that share a processor.
_STREAMS = (
    (8, DecodeConfig(block_n=128, num_warps=8, num_stages=3, fill=1, stream=True)),
    (64, DecodeConfig(block_n=64, num_warps=8, num_stages=3, fill=2, stream=True)),
)


@dataclass(frozen=True)
class DeviceLimits:
    processors: int
    shared_bytes: int  # that one program may have


def head_block(head_dim: int) -> int:
    """BLOCK_H: a power of two, as matrix units take it."""
    return max(16, triton.next_power_of_2(head_dim))


@cache
def device_limits(device: torch.device) -> DeviceLimits:
    """Without a GPU, of something small: the interpreter runs one program after the other."""
    if device.type != "cuda":
        return DeviceLimits(2, 65536)
    properties = torch.cuda.get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", 0) or 65536
    return DeviceLimits(properties.multi_processor_count, shared)


def decode_config(head_dim: int, dtype: torch.dtype, limits: DeviceLimits, rows: int | None = None) -> DecodeConfig:
    """For steps of up to `rows` rows: few have to be split evenly."""
    line = head_block(head_dim) * dtype.itemsize
    if rows is not None and dtype.itemsize == 2:
        for most_rows, config in _STREAMS:
            its_bytes = 2 * config.num_stages * config.block_n * line
            if rows <= most_rows and config.fill * its_bytes <= limits.shared_bytes:
                return replace(config, fill=config.fill * limits.processors)
    return DecodeConfig(
        block_n=max(16, min(64, 16384 // line)), fill=8 * limits.processors, max_programs=16 * limits.processors
    )


def prefill_config(head_dim: int, dtype: torch.dtype, limits: DeviceLimits) -> PrefillConfig:
    line = head_block(head_dim) * dtype.itemsize
    if dtype == torch.float32:
        return replace(_PREFILL_FLOAT32, block_n=32 if line <= 512 else 16)
    choices = _PREFILL[max(line, 128)] if line <= 512 else _PREFILL[512]
    fitting = (c for c in choices if line * (c.block_m + 2 * c.num_stages * c.block_n) <= limits.shared_bytes)
    return next(fitting, choices[-1])


# ---- what ---------------------------------------------------------------------------------------------------------


class Workspace:
    """Buffers that stay where they are, as captured graphs demand: each is made when its name and size are first asked
    for, zeroed, and kept. A first call must not happen inside a capture, whose zeroing would not run."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[object, ...], torch.Tensor] = {}

    def take(self, name: object, size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A flat buffer of at least `size` places."""
        size = triton.next_power_of_2(size)
        key = (name, size, dtype, device)
        if key not in self._buffers:
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    f"attention buffer {name!r} of {size} places: run this step's shape before capturing"
                )
            self._buffers[key] = torch.zeros(size, dtype=dtype, device=device)
        return self._buffers[key]

    @property
    def num_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers.values())


@dataclass(frozen=True)
class Heads:
    """One layer's attention, as far as kernels care."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    soft_cap: float | None = None
    sinks: torch.Tensor | None = None  # [N], logits

    @property
    def group(self) -> int:
        return self.num_heads // self.num_kv_heads

    def logits(self) -> tuple[float, float]:
        """scale and cap as the kernels take them."""
        if self.soft_cap is None:
            return self.scale * LOG2E, 0.0
        return self.scale / self.soft_cap, self.soft_cap * LOG2E


@dataclass(frozen=True)
class Bounds:
    """Of a step, or of all steps that a captured graph is to serve."""

    rows: int
    decode_tokens: int  # rows of more query tokens go to the prefill kernel
    prefill_rows: int  # at most
    prefill_tokens: int  # of prefill rows together, at most


@dataclass
class Work:
    """A step's list of work, on the device, and how long it can be."""

    items: torch.Tensor
    starts: torch.Tensor
    tiles: torch.Tensor
    max_items: int
    max_tiles: int
    target: int
    bounds: Bounds


def tile_tokens(heads: Heads, config: PrefillConfig) -> int:
    return max(1, config.block_m // heads.group)


_SIZES = ["num_rows", "window", "decode_tokens", "tile_tokens", "target", "min_chunk", "chunk_unit", "page"]


@triton.jit(do_not_specialize=_SIZES)
def _list_kernel(
    query_start,
    seq_lens,
    items,
    starts,
    tiles,
    prefix_tokens,
    num_rows,
    window,
    decode_tokens,
    tile_tokens,
    target,
    min_chunk,
    chunk_unit,
    page,
    HAS_WINDOW: tl.constexpr,
    HAS_PREFIX: tl.constexpr,
    STREAM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    RECORD: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    lane = tl.arange(0, BLOCK_R)
    total = 0  # keys, or if STREAM units of them
    for first in range(0, num_rows, BLOCK_R):
        row = first + lane
        real = row < num_rows
        num_queries = tl.load(query_start + row + 1, mask=real, other=0) - tl.load(
            query_start + row, mask=real, other=0
        )
        length = tl.load(seq_lens + row, mask=real, other=0)
        decodes = (num_queries > 0) & (num_queries <= decode_tokens)
        begin = tl.zeros_like(length)
        if HAS_WINDOW:
            begin = tl.maximum(length - num_queries - window + 1, 0) // page * page
        if HAS_PREFIX:
            begin = tl.maximum(begin, tl.load(prefix_tokens + row, mask=real, other=0))
        if STREAM:
            total += tl.sum(tl.where(decodes, (tl.maximum(length - begin, 1) + chunk_unit - 1) // chunk_unit, 0), 0)
        else:
            total += tl.sum(tl.where(decodes, length - begin, 0), 0)
    share = (total + target - 1) // target
    if STREAM:
        share = tl.maximum(share, (min_chunk + chunk_unit - 1) // chunk_unit)
    chunk = tl.maximum((share + chunk_unit - 1) // chunk_unit * chunk_unit, min_chunk)
    num_items, num_slots, num_tiles, num_units = 0, 0, 0, 0
    for first in range(0, num_rows, BLOCK_R):
        row = first + lane
        real = row < num_rows
        query_begin = tl.load(query_start + row, mask=real, other=0)
        num_queries = tl.load(query_start + row + 1, mask=real, other=0) - query_begin
        length = tl.load(seq_lens + row, mask=real, other=0)
        decodes = (num_queries > 0) & (num_queries <= decode_tokens)
        begin = tl.zeros_like(length)
        if HAS_WINDOW:
            begin = tl.maximum(length - num_queries - window + 1, 0) // page * page
        if HAS_PREFIX:
            begin = tl.maximum(begin, tl.load(prefix_tokens + row, mask=real, other=0))
        keys = tl.where(decodes, tl.maximum(length - begin, 1), 1)
        if STREAM:  # the row has units first_unit : end_unit of them all, of `share` units each
            units = tl.where(decodes, (keys + chunk_unit - 1) // chunk_unit, 0)
            end_unit = num_units + tl.cumsum(units, 0)
            first_unit = end_unit - units
            owner = first_unit // share
            splits = tl.where(decodes, (end_unit - 1) // share - owner + 1, 0)
            num_units += tl.sum(units, 0)
        else:  # as many splits as chunks fit, then splits of equal size
            splits = (keys + chunk - 1) // chunk
            size = ((keys + splits - 1) // splits + chunk_unit - 1) // chunk_unit * chunk_unit
            splits = tl.where(decodes, (keys + size - 1) // size, 0)
        slots = tl.where(splits > 1, splits, 0)
        item = num_items + tl.cumsum(splits, 0) - splits
        slot = num_slots + tl.cumsum(slots, 0) - slots
        for split in range(program, tl.max(splits, 0), programs):
            here = split < splits
            record = items + (1 + item + split) * RECORD
            if STREAM:
                first_of = tl.maximum((owner + split) * share, first_unit)
                key_begin = begin + (first_of - first_unit) * chunk_unit
                key_end = begin + ((owner + split + 1) * share - first_unit) * chunk_unit
                opens = here & (first_of == (owner + split) * share)
                tl.store(starts + owner + split, item + split, mask=opens)
            else:
                key_begin = begin + split * size
                key_end = key_begin + size
            tl.store(record, row, mask=here)
            tl.store(record + 1, query_begin, mask=here)
            tl.store(record + 2, num_queries, mask=here)
            tl.store(record + 3, length - num_queries, mask=here)  # the first query's position
            tl.store(record + 4, key_begin, mask=here)
            tl.store(record + 5, tl.minimum(key_end, length), mask=here)
            tl.store(record + 6, slot, mask=here)
            tl.store(record + 7, splits, mask=here)
            tl.store(record + 8, tl.zeros_like(row) + split, mask=here)
        count = tl.where(num_queries > decode_tokens, (num_queries + tile_tokens - 1) // tile_tokens, 0)
        tile = num_tiles + tl.cumsum(count, 0) - count
        for index in range(program, tl.max(count, 0), programs):  # a row's last tile has most keys, and goes first
            here = index < count
            record = tiles + (1 + tile + index) * RECORD
            token = (count - 1 - index) * tile_tokens
            tl.store(record, row, mask=here)
            tl.store(record + 1, query_begin + token, mask=here)
            tl.store(record + 2, tl.minimum(num_queries - token, tile_tokens), mask=here)
            tl.store(record + 3, length - num_queries + token, mask=here)
            # The earliest key any of the row's queries may see: what lies before may be gone.
            first_seen = tl.zeros_like(row)
            if HAS_WINDOW:
                first_seen = tl.maximum(length - num_queries - window + 1, 0)
            tl.store(record + 4, first_seen, mask=here)
        num_items += tl.sum(splits, 0)
        num_slots += tl.sum(slots, 0)
        num_tiles += tl.sum(count, 0)
    if program == 0:
        if STREAM:  # programs without a share
            for first in range(0, target + 1, BLOCK_R):
                owner = first + lane
                tl.store(starts + owner, num_items, mask=(owner * share >= total) & (owner <= target))
        tl.store(items, num_items)
        tl.store(tiles, num_tiles)


def list_work(
    query_start: torch.Tensor,
    seq_lens_R: torch.Tensor,
    bounds: Bounds,
    heads: Heads,
    page: int,
    decode: DecodeConfig,
    prefill: PrefillConfig,
    workspace: Workspace,
    prefix_tokens_R: torch.Tensor | None = None,
) -> Work:
    """Cuts a step's rows into decode items and prefill tiles, but for the first `prefix_tokens_R` keys of a row. The
    result depends on lengths, the window and the number of heads alone: it serves every layer that has these, until
    the next call with the same."""
    tokens = tile_tokens(heads, prefill)
    target = max(1, decode.fill // heads.num_kv_heads)
    max_items = bounds.rows + target
    max_tiles = -(-bounds.prefill_tokens // tokens) + bounds.prefill_rows if bounds.prefill_rows else 0
    device = query_start.device
    name = (heads.window, heads.num_kv_heads, heads.group, page, decode, prefill, prefix_tokens_R is not None)
    items = workspace.take(("items", *name), (max_items + 1) * RECORD, torch.int32, device)
    starts = workspace.take(("starts", *name), target + 1, torch.int32, device)
    tiles = workspace.take(("tiles", *name), (max_tiles + 1) * RECORD, torch.int32, device)
    _list_kernel[(LIST_PROGRAMS if device.type == "cuda" else 2,)](
        query_start,
        seq_lens_R,
        items,
        starts,
        tiles,
        prefix_tokens_R,
        bounds.rows,
        heads.window or 0,
        bounds.decode_tokens,
        tokens,
        target,
        decode.min_chunk,
        math.lcm(decode.block_n, page),
        page,
        HAS_WINDOW=heads.window is not None,
        HAS_PREFIX=prefix_tokens_R is not None,
        STREAM=decode.stream,
        BLOCK_R=1024,
        RECORD=RECORD,
        num_warps=4,
    )
    return Work(items, starts, tiles, max_items, max_tiles, target, bounds)
