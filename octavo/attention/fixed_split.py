"""Attention for batch_invariant, in torch: what a query token gets is bitwise the same however it comes to be computed.

Keys are cut at multiples of CHUNK from position 0, and a query goes over its chunks in order (the online softmax), so
neither the length of its row nor where the row is split into steps matters. TILE query tokens of a row go together,
whose products have one shape; a key that a query may not see weighs exactly nothing, and a chunk of such keys changes
no bit of its state:

    keys         0 ......... 127 | 128 ....... 255 | 256 ...
    query 100    ###########.....                              chunk 0
    query 130    ################  ##..............            chunks 0, 1
    query 300        a window of 150: ...######### | #####...  chunks 1, 2

Step j of a forward is chunk j of all tiles that have it. Lengths are read on the host.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

from octavo.attention.backend import AttentionCall, AttentionQuery, StepContext
from octavo.cache.spec import KV_DTYPES
from octavo.ops.torch.cache import from_cache

FLOATS = ("float32", "bfloat16", "float16")
CHUNK = 128  # keys
TILE = 8  # query tokens
MOST_TILES = 64  # that go together, which bounds memory
FLOOR = -1.0e30  # where a running maximum starts: finite, so that nothing is ever inf - inf


@dataclass(slots=True)
class ChunkStep:
    """Tiles that have a chunk, n of them, of r rows."""

    tiles: torch.Tensor  # [n] int64
    rows: list[int]  # of each tile, among those r
    blocks: torch.Tensor  # [r * CHUNK / block_size] int64
    unread: torch.Tensor | None  # int64: gathered places (of r * CHUNK) that may hold anything; None: none
    mask: torch.Tensor | None  # [n, 1, TILE, 1, CHUNK] float32: -inf at keys that a query must not see; None: none


@dataclass(slots=True)
class Tiles:
    """A step's query tokens, cut into tiles of one row each."""

    tokens: torch.Tensor  # [tiles * TILE] int64; past a tile's end its last token
    places: torch.Tensor  # [T] int64: where each token is among them
    chunks: list[ChunkStep]


@dataclass(slots=True)
class FixedSplitPlan:
    """What the layers of a group share, made for each window when its first layer asks."""

    tiles: dict[tuple[int | None, int], Tiles] = field(default_factory=dict)


class FixedSplit:
    name = "fixed_split"
    is_capturable = False
    reads_shared_prefix = False

    def why_not(self, query: AttentionQuery) -> str | None:
        for what, dtype, known in (("dtype", query.dtype, FLOATS), ("cache dtype", query.cache_dtype, KV_DTYPES)):
            if dtype not in known:
                return f"{what} {dtype} is not one of {', '.join(known)}"
        if CHUNK % query.block_size:
            return f"blocks of {query.block_size} tokens do not divide {CHUNK} keys"
        return None

    def prepare(self) -> None:
        """Nothing to load."""

    def plan(self, step: StepContext, group: int) -> FixedSplitPlan:
        return FixedSplitPlan()

    def graph_key(self, step: StepContext) -> Hashable:
        return None

    def forward(
        self, q_TNH: torch.Tensor, cache: torch.Tensor, step: StepContext, group: int, call: AttentionCall
    ) -> torch.Tensor:
        plan: FixedSplitPlan = step.groups[group].plan
        key = (call.window, cache.shape[2])
        if key not in plan.tiles:
            plan.tiles[key] = _cut(step, step.groups[group].block_table, *key)
        tiles, num_kv_heads = plan.tiles[key], call.num_kv_heads
        q = q_TNH.float().index_select(0, tiles.tokens).unflatten(1, (num_kv_heads, -1))
        q = q.unflatten(0, (-1, TILE)).permute(0, 2, 1, 3, 4).flatten(2, 3)  # [tiles, K, TILE * N / K, H]
        state = _State(q, call.sinks, call.num_heads // num_kv_heads)
        for chunk in tiles.chunks:
            _attend(q, cache, chunk, call, state)
        out = state.values.div_(state.sums).unflatten(2, (TILE, -1)).permute(0, 2, 1, 3, 4)
        return out.reshape(-1, *q_TNH.shape[1:]).index_select(0, tiles.places).to(q_TNH.dtype)


class _State:
    """Of each query head of each place: running maximum, sum of weights, weighted values. Float32."""

    def __init__(self, q: torch.Tensor, sinks: torch.Tensor | None, group: int) -> None:
        self.values = torch.zeros_like(q)
        self.maxima = q.new_full((*q.shape[:-1], 1), FLOOR)
        self.sums = torch.zeros_like(self.maxima)
        if sinks is not None:
            self.maxima.unflatten(2, (TILE, group)).copy_(sinks.float().view(1, q.shape[1], 1, group, 1))
            self.sums.fill_(1.0)


def _attend(q: torch.Tensor, cache: torch.Tensor, chunk: ChunkStep, call: AttentionCall, state: _State) -> None:
    keys, values = _gather(cache[:, 0], chunk, call), _gather(cache[:, 1], chunk, call)
    scores = q.new_empty(len(chunk.tiles), *q.shape[1:3], CHUNK)
    for q_tile, row, out in zip(q.index_select(0, chunk.tiles).unbind(), chunk.rows, scores.unbind(), strict=True):
        torch.bmm(q_tile, keys[row].transpose(1, 2), out=out)
    scores.mul_(call.scale)
    if call.soft_cap is not None:
        scores.div_(call.soft_cap).tanh_().mul_(call.soft_cap)
    if chunk.mask is not None:
        scores.unflatten(2, (TILE, -1)).add_(chunk.mask)
    before = state.maxima.index_select(0, chunk.tiles)
    maxima = torch.maximum(before, scores.amax(-1, keepdim=True))
    weights = scores.sub_(maxima).exp_()
    faded = before.sub_(maxima).exp_()
    sums = state.sums.index_select(0, chunk.tiles).mul_(faded).add_(weights.sum(-1, keepdim=True))
    added = q.new_empty(len(chunk.tiles), *q.shape[1:])
    for weights_tile, row, out in zip(weights.unbind(), chunk.rows, added.unbind(), strict=True):
        torch.bmm(weights_tile, values[row], out=out)
    added.add_(state.values.index_select(0, chunk.tiles).mul_(faded))
    state.maxima.index_copy_(0, chunk.tiles, maxima)
    state.sums.index_copy_(0, chunk.tiles, sums)
    state.values.index_copy_(0, chunk.tiles, added)


def _gather(part: torch.Tensor, chunk: ChunkStep, call: AttentionCall) -> tuple[torch.Tensor, ...]:
    """The chunk's keys or values of each row, [K, CHUNK, H] in float32."""
    found = part.index_select(0, chunk.blocks).flatten(0, 1)
    if chunk.unread is not None:  # whatever lies there, NaN included
        found.index_fill_(0, chunk.unread, 0)
    if found.dtype == torch.int8:
        found = from_cache(found, torch.float32)
    by_row = found.view(-1, CHUNK, call.num_kv_heads, call.head_dim).transpose(1, 2)
    return torch.empty(by_row.shape, device=part.device).copy_(by_row).unbind()


def _cut(step: StepContext, block_table: torch.Tensor, window: int | None, block_size: int) -> Tiles:
    lengths: list[int] = step.seq_lens.tolist()
    starts: list[int] = step.query_start.tolist()
    records: list[tuple[int, int, int, int]] = []  # row, first token, tokens, first token's position
    lows: list[int] = []  # the first position that each row's queries may see: what lies before may be gone
    for row, length in enumerate(lengths):
        begin, end = starts[row], starts[row + 1]
        lows.append(0 if window is None else max(0, length - (end - begin) - window + 1))
        for token in range(begin, end, TILE):
            records.append((row, token, min(TILE, end - token), length - end + token))
    device = block_table.device
    rows, tokens, counts, positions = (torch.tensor(part, device=device) for part in zip(*records, strict=True))
    inside = torch.arange(TILE, device=device)
    place = torch.minimum(inside, counts[:, None] - 1)  # [tiles, TILE]
    places = torch.arange(len(records) * TILE, device=device).view(-1, TILE)[inside < counts[:, None]]
    query_at = positions[:, None] + place
    row_lows = torch.tensor(lows, device=device)
    first_seen = torch.zeros_like(positions) if window is None else (positions - window + 1).clamp(min=0)
    first_chunk, last_chunk = first_seen // CHUNK, query_at[:, -1] // CHUNK
    per_chunk = CHUNK // block_size
    chunks = []
    for index in range(int(first_chunk.min()), int(last_chunk.max()) + 1):
        having = ((first_chunk <= index) & (index <= last_chunk)).nonzero()[:, 0]
        column = torch.arange(index * per_chunk, (index + 1) * per_chunk, device=device)
        position = torch.arange(index * CHUNK, (index + 1) * CHUNK, device=device)
        for tiles in having.split(MOST_TILES) if len(having) else ():
            its_rows, row_of_tile = rows[tiles].unique(return_inverse=True)
            blocks = block_table[its_rows[:, None], column.clamp(max=block_table.shape[1] - 1)].long()
            unread = position >= step.seq_lens[its_rows][:, None]
            if window is not None:
                unread |= position < row_lows[its_rows][:, None]
            hidden = position > query_at[tiles][..., None]
            if window is not None:
                hidden |= position <= query_at[tiles][..., None] - window
            mask = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, float("-inf"))[:, None, :, None]
            chunks.append(
                ChunkStep(
                    tiles,
                    row_of_tile.tolist(),
                    blocks.flatten(),
                    unread.flatten().nonzero()[:, 0] if unread.any() else None,
                    mask if hidden.any() else None,
                )
            )
    return Tiles((tokens[:, None] + place).flatten(), places, chunks)
