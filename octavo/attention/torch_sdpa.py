"""The reference backend: torch's scaled_dot_product_attention over keys and values gathered from the paged cache.

Rows of one token are gathered together, in buckets of similar length; longer rows go one by one, in slices of queries:

    decode bucket       prefill row, keys ->      every slice's mask is a view of one staircase, kept from step to step:
    k [R, L, K, H]      slice 0  #########        row i, column c are seen if c <= C + i (and c > C + i - window);
    ####----            slice 1  ############     a slice whose first query comes `first` keys after its first key
    ########            slice 2  ###############  takes the columns from C - first on

Lengths are read on the host: on a CPU that costs nothing, elsewhere this backend is for comparison.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention

from octavo.attention.backend import AttentionCall, AttentionQuery, StepContext
from octavo.cache.spec import KV_DTYPES
from octavo.ops.torch.cache import from_cache

FLOATS = ("float32", "bfloat16", "float16")
SLICE = 256  # queries at a time, which bounds masks and scores
MASK_ALIGNMENT = 16  # elements: GPUs read masks in aligned runs
BUCKET_TOKENS = 1024  # padding that costs about as much as one more bucket's calls


@dataclass(slots=True)
class DecodeBucket:
    """Rows of one query token, padded to the longest of them."""

    tokens: torch.Tensor | None  # [R] int64: where their queries are; None if they are all tokens, in order
    blocks: torch.Tensor  # [R * B] int64
    unseen: torch.Tensor | None  # int64: gathered places (of R * B * block_size) that no query may see
    mask: torch.Tensor | None  # [R, 1, 1, L] float32: 0 or -inf


@dataclass(slots=True)
class PrefillRow:
    """A row of several query tokens, at the end of `length` tokens."""

    begin: int
    end: int
    length: int
    low: int  # position of the first gathered key, a multiple of the block size
    blocks: torch.Tensor  # [B] int64


@dataclass(slots=True)
class SdpaPlan:
    """What the layers of a group share, made for each window when its first layer asks."""

    parts: dict[tuple[int | None, int], tuple[list[DecodeBucket], list[PrefillRow]]] = field(default_factory=dict)


class TorchSdpa:
    name = "torch_sdpa"
    is_capturable = False
    reads_shared_prefix = False

    def __init__(self) -> None:
        self._stairs: dict[tuple[int | None, torch.dtype, torch.device], torch.Tensor] = {}

    def why_not(self, query: AttentionQuery) -> str | None:
        if query.sinks:
            return "no attention sinks"
        if query.dtype not in FLOATS:
            return f"dtype {query.dtype} is not one of {', '.join(FLOATS)}"
        if query.cache_dtype not in KV_DTYPES:
            return f"cache dtype {query.cache_dtype} is not one of {', '.join(KV_DTYPES)}"
        return None

    def plan(self, step: StepContext, group: int) -> SdpaPlan:
        return SdpaPlan()

    def prepare(self) -> None:
        """Nothing to load."""

    def graph_key(self, step: StepContext) -> Hashable:
        return None

    def forward(
        self, q_TNH: torch.Tensor, cache: torch.Tensor, step: StepContext, group: int, call: AttentionCall
    ) -> torch.Tensor:
        plan: SdpaPlan = step.groups[group].plan
        key = (call.window, cache.shape[2])
        if key not in plan.parts:
            plan.parts[key] = _split(step, step.groups[group].block_table, *key)
        buckets, rows = plan.parts[key]
        keys, values = cache[:, 0], cache[:, 1]
        if not rows and len(buckets) == 1:  # every row decodes, at similar lengths: no scatter
            return _decode(q_TNH, keys, values, buckets[0], call)
        out = torch.empty(q_TNH.shape, dtype=q_TNH.dtype, device=q_TNH.device)
        for bucket in buckets:
            if bucket.tokens is None:
                return _decode(q_TNH, keys, values, bucket, call)
            out[bucket.tokens] = _decode(q_TNH[bucket.tokens], keys, values, bucket, call)
        for row in rows:
            self._prefill(q_TNH[row.begin : row.end], keys, values, row, call, out[row.begin : row.end])
        return out

    def _prefill(
        self,
        q_TNH: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        row: PrefillRow,
        call: AttentionCall,
        out_TNH: torch.Tensor,
    ) -> None:
        num_queries, num_kv_heads = q_TNH.shape[0], call.num_kv_heads
        # [K, N / K, T, H], and keys with a stride of 0 over the query heads that share them
        q = q_TNH.unflatten(1, (num_kv_heads, -1)).permute(1, 2, 0, 3)
        k, v = (
            from_cache(part.index_select(0, row.blocks).flatten(0, 1)[: row.length - row.low], q.dtype)
            .transpose(0, 1)
            .unsqueeze(1)
            .expand(-1, q.shape[1], -1, -1)
            for part in (keys, values)
        )
        out = out_TNH.unflatten(1, (num_kv_heads, -1)).permute(1, 2, 0, 3)
        if num_queries == row.length and call.soft_cap is None and (call.window is None or row.length <= call.window):
            out.copy_(scaled_dot_product_attention(q, k, v, is_causal=True, scale=call.scale))
            return
        for start in range(0, num_queries, SLICE):
            end = min(start + SLICE, num_queries)
            first = row.length - num_queries + start  # position of the slice's first query
            low = 0 if call.window is None else max(0, first - call.window + 1)
            seen = slice(low - row.low, first + end - start - row.low)
            mask = self._mask(end - start, seen.stop - seen.start, first - low, call.window, q)
            out[:, :, start:end] = _attend(q[:, :, start:end], k[:, :, seen], v[:, :, seen], mask, call)

    def _mask(
        self, num_queries: int, num_keys: int, first: int, window: int | None, like: torch.Tensor
    ) -> torch.Tensor:
        """[num_queries, num_keys] of 0 and -inf, for a first query that is `first` keys after the first key."""
        key = (window, like.dtype, like.device)
        stairs = self._stairs.get(key)
        if stairs is None or first > stairs.shape[1] - SLICE:
            size = max(1024, 1 << first.bit_length())
            column = torch.arange(size + SLICE, device=like.device)
            last_seen = torch.arange(size, size + SLICE, device=like.device)[:, None]
            seen = column <= last_seen
            if window is not None:
                seen &= column > last_seen - window
            stairs = torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, float("-inf"))
            self._stairs[key] = stairs
        left = stairs.shape[1] - SLICE - first
        mask = stairs[:num_queries, left : left + num_keys]
        if left % MASK_ALIGNMENT == 0:
            return mask
        aligned = mask.new_empty(num_queries, num_keys + -num_keys % MASK_ALIGNMENT)[:, :num_keys]
        return aligned.copy_(mask)


def _decode(
    q_RNH: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bucket: DecodeBucket, call: AttentionCall
) -> torch.Tensor:
    num_rows, num_heads, head_dim = q_RNH.shape
    k = keys.index_select(0, bucket.blocks).flatten(0, 1)
    v = values.index_select(0, bucket.blocks).flatten(0, 1)
    if bucket.unseen is not None:  # whatever lies there, NaN included, must not reach the row
        k.index_fill_(0, bucket.unseen, 0)
        v.index_fill_(0, bucket.unseen, 0)
    k, v = (from_cache(part, q_RNH.dtype).unflatten(0, (num_rows, -1)).transpose(1, 2) for part in (k, v))
    q = q_RNH.view(num_rows, call.num_kv_heads, -1, head_dim)  # heads of one key head as if they were queries
    mask = bucket.mask
    if mask is not None:
        mask = mask.to(q.dtype).expand(-1, 1, q.shape[2], -1)
    return _attend(q, k, v, mask, call).reshape(num_rows, num_heads, head_dim)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, call: AttentionCall
) -> torch.Tensor:
    if call.soft_cap is None:
        return scaled_dot_product_attention(q, k, v, mask, scale=call.scale)
    scores = torch.matmul(q, k.transpose(-1, -2)).float().mul_(call.scale / call.soft_cap).tanh_().mul_(call.soft_cap)
    if mask is not None:
        scores += mask
    return torch.matmul(scores.softmax(-1).to(v.dtype), v)


def _split(
    step: StepContext, block_table: torch.Tensor, window: int | None, block_size: int
) -> tuple[list[DecodeBucket], list[PrefillRow]]:
    lengths: list[int] = step.seq_lens.tolist()
    decodes: list[tuple[int, int]] = []  # (blocks to gather, row)
    rows: list[PrefillRow] = []
    begin = 0
    starts = []
    for row, (num_queries, length) in enumerate(zip(step.query_lens, lengths, strict=True)):
        starts.append(begin)
        first = length - num_queries
        low = 0 if window is None else max(0, first - window + 1) // block_size
        high = -(-length // block_size)
        if num_queries == 1:
            decodes.append((high - low, row))
        elif num_queries > 1:
            blocks = block_table[row, low:high].long()
            rows.append(PrefillRow(begin, begin + num_queries, length, low * block_size, blocks))
        begin += num_queries
    buckets = [
        _bucket(bucket, width, starts, lengths, block_table, window, block_size, step.num_tokens)
        for bucket, width in _buckets(decodes, BUCKET_TOKENS // block_size)
    ]
    return buckets, rows


def _buckets(decodes: list[tuple[int, int]], allowance: int) -> list[tuple[list[int], int]]:
    """Rows of similar width together. A bucket closes when its padding outgrows both `allowance` and a quarter of
    what it holds."""
    buckets: list[tuple[list[int], int]] = []
    padding = used = 0
    for width, row in sorted(decodes, reverse=True):
        if buckets:
            padding += buckets[-1][1] - width
            used += width
        if not buckets or padding > max(allowance, used // 4):
            buckets.append(([], width))
            padding, used = 0, width
        buckets[-1][0].append(row)
    return [(sorted(rows), width) for rows, width in buckets]


def _bucket(
    rows: list[int],
    width: int,
    starts: list[int],
    lengths: list[int],
    block_table: torch.Tensor,
    window: int | None,
    block_size: int,
    num_tokens: int,
) -> DecodeBucket:
    device = block_table.device
    length = torch.tensor([lengths[row] for row in rows], device=device)[:, None]
    low = torch.zeros_like(length) if window is None else (length - window).clamp_(min=0) // block_size
    block = low + torch.arange(width, device=device)  # [R, width]: of the request
    last = (length - 1) // block_size
    ids = block_table[torch.tensor(rows, device=device)[:, None], block.clamp(max=last)].long()
    position = (block[:, :, None] * block_size + torch.arange(block_size, device=device)).flatten(1)
    seen = position < length
    if window is not None:
        seen &= position >= length - window
    mask = unseen = None
    if not seen.all():
        unseen = (~seen).flatten().nonzero().flatten()
        mask = torch.zeros(seen.shape, device=device).masked_fill_(~seen, float("-inf"))[:, None, None]
    tokens = None if len(rows) == num_tokens else torch.tensor([starts[row] for row in rows], device=device)
    return DecodeBucket(tokens, ids.flatten(), unseen, mask)
