"""The recurrences in torch.

Rows of different lengths are walked together without padding: sorted by length, tokens by their place in the row, so
that step t of the walk is a slice, and those rows that go on are the first of it:

    row a  0 1 2 3             walk   a0 b0 c0 | a1 b1 | a2 | a3
    row c  0            ->     counts        3 |     2 |  1 |  1
    row b  0 1

That is the whole of Mamba-1, and what Mamba-2 does with one token a row. Longer rows of Mamba-2 go by chunks of CHUNK
tokens: inside a chunk a masked matrix product, between chunks one state (arXiv 2405.21060, listing 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch.nn import functional

from octavo.ops.state_rows import StateRows

CHUNK = 64  # tokens: scores cost CHUNK per token and head, the state's products state_size
SHORT = 16  # rows of at most so many tokens are padded to one another, not to CHUNK
LARGE = 1 << 16  # values of a state
WALK_VALUES = 1 << 22  # state values that a walk keeps at once


def causal_conv1d(
    x_TC: torch.Tensor,
    weight_CW: torch.Tensor,
    bias: torch.Tensor | None,
    states: torch.Tensor,
    rows: StateRows,
    activate: bool = True,
    return_states: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    x, taps, width = x_TC.float(), weight_CW.float().t().contiguous(), weight_CW.shape[1]
    before = _load(states, rows.blocks, rows.fresh)
    each: torch.Tensor | None = None
    if len(x) == rows.num_rows:  # one token a row
        out = before[..., 0] * taps[0]
        for w in range(1, width - 1):
            out.addcmul_(before[..., w], taps[w])
        out.addcmul_(x, taps[-1])
        each = after = torch.cat((before[..., 1:], x.unsqueeze(-1)), -1)
    else:
        # | state of row 0, its tokens | state of row 1, its tokens | ...: each output is a window of this line
        places = _line(rows, width)
        parts = zip(before.transpose(1, 2), x.split(rows.query_lens), strict=True)
        line = torch.cat([part for row in parts for part in row])
        num_windows = len(line) - width + 1
        out = line[:num_windows] * taps[0]
        for w in range(1, width):
            out.addcmul_(line[w : w + num_windows], taps[w])
        if rows.num_rows > 1:
            out = out.index_select(0, places.windows)
        after = line[places.ends].transpose(1, 2)
        if return_states:
            each = line[places.states].transpose(1, 2)
    _store(states, rows.blocks, after)
    if bias is not None:
        out += bias
    if activate:
        out = functional.silu(out, inplace=True)
    return out.to(x_TC.dtype), each if return_states else None


def selective_scan(
    x_TD: torch.Tensor,
    dt_TD: torch.Tensor,
    A_DN: torch.Tensor,
    B_TN: torch.Tensor,
    C_TN: torch.Tensor,
    D_D: torch.Tensor,
    gate_TD: torch.Tensor,
    states: torch.Tensor,
    rows: StateRows,
    return_states: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    walk = _walk(rows)
    x = x_TD.float()
    delta = functional.softplus(dt_TD.float())
    u, delta, B, C = (walk.order(part) for part in (delta * x, delta, B_TN.float(), C_TN.float()))
    state = _load(states, walk.blocks, walk.fresh)
    outputs: list[torch.Tensor] = []
    kept: list[torch.Tensor] = []
    ended: list[torch.Tensor] = []
    for first, last, counts in walk.slices(state[0].numel()):
        part = slice(first, last)
        decay = torch.exp(delta[part, :, None] * A_DN)
        each = u[part, :, None] * B[part, None]
        state = _recur(decay, each, state, counts, ended)
        outputs.append(torch.matmul(each, C[part, :, None]).squeeze(-1))
        if return_states:
            kept.append(each)
    _store(states, walk.blocks, _cat([state, *reversed(ended)]))
    y = walk.restore(_cat(outputs)).addcmul_(x, D_D).mul_(functional.silu(gate_TD.float()))
    return y.to(x_TD.dtype), walk.restore(_cat(kept)) if return_states else None


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
    x, B, C = x_THP.float(), B_TGN.float(), C_TGN.float()
    delta = functional.softplus(dt_TH.float() + dt_bias_H)
    if dt_limit != (0.0, float("inf")):
        delta = delta.clamp_(*dt_limit)
    u, log_decay = x * delta.unsqueeze(-1), delta * A_H
    each = None
    if return_states or len(x) == rows.num_rows:
        y, each = _ssd_walk(u, log_decay, B, C, states, _walk(rows), return_states)
    else:
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        ones, buckets = _chunks(rows)
        if ones is not None:
            tokens, walk = ones
            a, b, c, d = (part.index_select(0, tokens) for part in (u, log_decay, B, C))
            y.index_copy_(0, tokens, _ssd_walk(a, b, c, d, states, walk, False)[0])
        for bucket in buckets:
            _ssd_chunks(u, log_decay, B, C, states, bucket, y)
    return y.addcmul_(x, D_H.unsqueeze(-1)).to(x_THP.dtype), each


# ---- Mamba-2, token by token and chunk by chunk ----------------------------------------------------------------------


def _ssd_walk(
    u_THP: torch.Tensor,
    log_decay_TH: torch.Tensor,
    B_TGN: torch.Tensor,
    C_TGN: torch.Tensor,
    states: torch.Tensor,
    walk: Walk,
    return_states: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """y [T, H, P] without the skip of x, and the states after each token."""
    num_groups = B_TGN.shape[1]
    if walk.forward is None and len(walk.counts) == 1 and not return_states and _is_large(states):
        return _ssd_in_place(u_THP, log_decay_TH, B_TGN, C_TGN, states, walk), None
    u, B, C = walk.order(u_THP), walk.order(B_TGN), walk.order(C_TGN)
    decay = walk.order(log_decay_TH).exp()[..., None, None]
    state = _load(states, walk.blocks, walk.fresh)
    outputs: list[torch.Tensor] = []
    kept: list[torch.Tensor] = []
    ended: list[torch.Tensor] = []
    for first, last, counts in walk.slices(state[0].numel()):
        part = slice(first, last)
        by_group = u[part].reshape(last - first, num_groups, -1, 1) * B[part].unsqueeze(2)  # [t, G, H/G * P, N]
        each = by_group.view(last - first, *state.shape[1:])
        state = _recur(decay[part], each, state, counts, ended)
        outputs.append(torch.matmul(by_group, C[part].unsqueeze(-1)).view(u[part].shape))
        if return_states:
            kept.append(each)
    _store(states, walk.blocks, _cat([state, *reversed(ended)]))
    return walk.restore(_cat(outputs)), walk.restore(_cat(kept)) if return_states else None


def _ssd_in_place(
    u_RHP: torch.Tensor,
    log_decay_RH: torch.Tensor,
    B_RGN: torch.Tensor,
    C_RGN: torch.Tensor,
    states: torch.Tensor,
    walk: Walk,
) -> torch.Tensor:
    """One token a row, row after row where its state lies."""
    num_groups, state_size = B_RGN.shape[1:]
    y = torch.empty(u_RHP.shape, dtype=torch.float32)
    decay = log_decay_RH.exp()[..., None, None]
    outer_u, outer_B = u_RHP.reshape(len(y), num_groups, -1, 1), B_RGN.unsqueeze(2)
    inner_C, out = C_RGN.unsqueeze(-1), y.view(len(y), num_groups, -1, 1)
    if walk.fresh is not None:
        states[walk.blocks[walk.fresh]] = 0
    for row, block in enumerate(walk.blocks.tolist()):
        state = states[block].mul_(decay[row]).view(num_groups, -1, state_size)
        state.baddbmm_(outer_u[row], outer_B[row])
        torch.bmm(state, inner_C[row], out=out[row])
    return y


def _ssd_chunks(
    u_THP: torch.Tensor,
    log_decay_TH: torch.Tensor,
    B_TGN: torch.Tensor,
    C_TGN: torch.Tensor,
    states: torch.Tensor,
    bucket: ChunkBucket,
    y_THP: torch.Tensor,
) -> None:
    """Fills y at the tokens of the bucket's rows, chunk after chunk. n rows that have this chunk, Q tokens in it."""
    _, num_heads, head_dim = u_THP.shape
    num_groups, state_size = B_TGN.shape[1:]
    state = _load(states, bucket.blocks, bucket.fresh)
    above = torch.ones(bucket.size, bucket.size, dtype=torch.bool, device=y_THP.device).triu_(1)
    ended = []
    for chunk in bucket.chunks:
        n, Q = chunk.num_rows, bucket.size
        if n < len(state):
            ended.append(state[n:])
            state = state[:n]
        u = u_THP.index_select(0, chunk.tokens).view(n, Q, num_heads, head_dim)
        log_decay = log_decay_TH.index_select(0, chunk.tokens).view(n, Q, num_heads)
        if chunk.padding is not None:  # neither decays nor adds
            u = u.masked_fill_(chunk.padding[..., None, None], 0)
            log_decay = log_decay.masked_fill_(chunk.padding[..., None], 0)
        u = u.transpose(1, 2)  # [n, H, Q, P]
        B = B_TGN.index_select(0, chunk.tokens).view(n, Q, num_groups, state_size).transpose(1, 2)  # [n, G, Q, N]
        C = C_TGN.index_select(0, chunk.tokens).view(n, Q, num_groups, state_size).transpose(1, 2)
        # A difference of two long sums: in float64, since what is left of them may be small.
        total = log_decay.transpose(1, 2).double().cumsum(-1)  # [n, H, Q]
        weights = (total.unsqueeze(-1) - total.unsqueeze(-2)).float().masked_fill_(above, float("-inf")).exp_()
        weights.view(n, num_groups, -1, Q, Q).mul_(torch.matmul(C, B.transpose(2, 3)).unsqueeze(2))
        inside = torch.matmul(weights, u)  # [n, H, Q, P]
        by_group = state.reshape(n, num_groups, -1, state_size)  # [n, G, H/G * P, N]
        before = torch.matmul(C, by_group.transpose(2, 3))  # [n, G, Q, H/G * P]
        before = before.unflatten(-1, (-1, head_dim)).transpose(2, 3).reshape(inside.shape)
        y = inside.addcmul_(before, total.exp().float().unsqueeze(-1)).transpose(1, 2).reshape(n * Q, num_heads, -1)
        if chunk.kept is None:
            y_THP.index_copy_(0, chunk.tokens, y)
        else:
            y_THP.index_copy_(0, chunk.tokens[chunk.kept], y[chunk.kept])
        to_end = (total[..., -1:] - total).exp().float().unsqueeze(-1)  # [n, H, Q, 1]
        added = (u * to_end).transpose(2, 3).reshape(n, num_groups, -1, Q)  # [n, G, H/G * P, Q]
        state = torch.matmul(added, B).view(state.shape).addcmul_(state, total[..., -1].exp().float()[..., None, None])
    _store(states, bucket.blocks, _cat([state, *reversed(ended)]))


# ---- states ----------------------------------------------------------------------------------------------------------


def _is_large(states: torch.Tensor) -> bool:
    """A copy would cost more than a few calls for each row. Those need to know the blocks on the host."""
    return states.dtype == torch.float32 and states.device.type == "cpu" and states[0].numel() >= LARGE


def _load(states: torch.Tensor, blocks: torch.Tensor, fresh: torch.Tensor | None) -> torch.Tensor:
    """Float32 copies [R, ...] of rows' states."""
    loaded = states.index_select(0, blocks).float()
    if fresh is not None:
        loaded.masked_fill_(fresh.view(-1, *(1,) * (loaded.dim() - 1)), 0)
    return loaded


def _store(states: torch.Tensor, blocks: torch.Tensor, values: torch.Tensor) -> None:
    states.index_copy_(0, blocks, values.to(states.dtype))


def _recur(
    decay: torch.Tensor, each: torch.Tensor, state: torch.Tensor, counts: list[int], ended: list[torch.Tensor]
) -> torch.Tensor:
    """h[t] = decay[t] h[t - 1] + each[t], in `each`, for tokens in a walk's order. Returns the states of the rows that
    are left; those of rows that end before come to `ended`, the longer rows after the shorter."""
    for a, b in zip(decay.split(counts), each.split(counts), strict=True):
        if len(b) < len(state):
            ended.append(state[len(b) :].clone())  # a view would keep the whole part
            state = state[: len(b)]
        state = b.addcmul_(a, state)
    return state


def _cat(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


# ---- what only the step decides --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Walk:
    """The order in which rows are walked together. `forward` and `back` are None where it is the batch's own."""

    blocks: torch.Tensor  # of the rows, longest first
    fresh: torch.Tensor | None
    counts: list[int]  # rows that have a token at each place
    forward: torch.Tensor | None  # [T] int64
    back: torch.Tensor | None  # [T] int64

    def order(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens if self.forward is None else tokens.index_select(0, self.forward)

    def restore(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens if self.back is None else tokens.index_select(0, self.back)

    def slices(self, values: int) -> list[tuple[int, int, list[int]]]:
        """(first token, last + 1, counts) of parts whose states, of `values` each, are few enough to keep at once."""
        most = max(1, WALK_VALUES // values)
        if len(self.counts) == 1 or sum(self.counts) <= most:
            return [(0, sum(self.counts), self.counts)]
        parts: list[tuple[int, int, list[int]]] = []
        for first, count in zip(accumulate(self.counts, initial=0), self.counts, strict=False):
            if parts and first + count - parts[-1][0] <= most:
                begin, _, counts = parts[-1]
                counts.append(count)
                parts[-1] = (begin, first + count, counts)
            else:
                parts.append((first, first + count, [count]))
        return parts


def _walk(rows: StateRows) -> Walk:
    if "walk" not in rows.derived:
        rows.derived["walk"] = _make_walk(rows)
    return rows.derived["walk"]


def _make_walk(rows: StateRows) -> Walk:
    if rows.num_rows == 1 or rows.num_tokens == rows.num_rows:
        counts = [1] * rows.num_tokens if rows.num_rows == 1 else [rows.num_rows]
        return Walk(rows.blocks, rows.fresh, counts, None, None)
    lens = np.asarray(rows.query_lens)
    by_length = np.argsort(-lens, kind="stable")
    place = np.concatenate([np.arange(lens[row]) for row in by_length])
    token = np.concatenate(
        [np.arange(lens[row]) + start for row, start in zip(by_length, _starts(lens)[by_length], strict=True)]
    )
    in_step = token[np.argsort(place, kind="stable")]
    order, forward = (torch.from_numpy(indices).to(rows.blocks.device) for indices in (by_length, in_step))
    back = torch.empty_like(forward)
    back[forward] = torch.arange(len(forward), device=forward.device)
    fresh = None if rows.fresh is None else rows.fresh[order]
    return Walk(rows.blocks[order], fresh, np.bincount(place).tolist(), forward, back)


@dataclass(slots=True)
class Chunk:
    """The k-th chunk of a bucket's rows, those that have one."""

    num_rows: int
    tokens: torch.Tensor  # [n * Q] int64; past a row's end its last token
    padding: torch.Tensor | None  # [n, Q] bool: past a row's end
    kept: torch.Tensor | None  # int64: places in [n * Q] that are tokens; None: all


@dataclass(slots=True)
class ChunkBucket:
    """Rows of several tokens, longest first, cut into chunks of `size`."""

    blocks: torch.Tensor
    fresh: torch.Tensor | None
    size: int
    chunks: list[Chunk]


def _chunks(rows: StateRows) -> tuple[tuple[torch.Tensor, Walk] | None, list[ChunkBucket]]:
    """(tokens and walk of the rows of one token, if there are any; the others)."""
    if "chunks" not in rows.derived:
        device, lens = rows.blocks.device, np.asarray(rows.query_lens)
        starts = _starts(lens)
        ones, ones_walk = np.flatnonzero(lens == 1), None
        if len(ones):
            index = torch.from_numpy(ones).to(device)
            fresh = None if rows.fresh is None else rows.fresh[index]
            walk = Walk(rows.blocks[index], fresh, [len(ones)], None, None)
            ones_walk = torch.from_numpy(starts[ones]).to(device), walk
        parts = (np.flatnonzero((lens > 1) & (lens <= SHORT)), np.flatnonzero(lens > SHORT))
        rows.derived["chunks"] = ones_walk, [_bucket(rows, part, lens, starts) for part in parts if len(part)]
    return rows.derived["chunks"]


def _bucket(rows: StateRows, part: np.ndarray, lens: np.ndarray, starts: np.ndarray) -> ChunkBucket:
    device = rows.blocks.device
    part = part[np.argsort(-lens[part], kind="stable")]
    lens, starts = lens[part], starts[part]
    size = min(CHUNK, int(lens[0]))
    chunks = []
    for first in range(0, int(lens[0]), size):
        n = int(np.count_nonzero(lens > first))
        place = np.broadcast_to(np.arange(first, first + size), (n, size))
        padding = place >= lens[:n, None]
        tokens = torch.from_numpy((np.minimum(place, lens[:n, None] - 1) + starts[:n, None]).reshape(-1)).to(device)
        if padding.any():
            kept = torch.from_numpy(np.flatnonzero(~padding)).to(device)
            chunks.append(Chunk(n, tokens, torch.from_numpy(padding).to(device), kept))
        else:
            chunks.append(Chunk(n, tokens, None, None))
    index = torch.from_numpy(part).to(device)
    return ChunkBucket(rows.blocks[index], None if rows.fresh is None else rows.fresh[index], size, chunks)


@dataclass(slots=True)
class Line:
    """Places in the line of states and tokens that a convolution slides over."""

    windows: torch.Tensor  # [T] int64: first place of each token's window
    states: torch.Tensor  # [T, W - 1] int64: the state after each token
    ends: torch.Tensor  # [R, W - 1] int64: the state after each row's last token


def _line(rows: StateRows, width: int) -> Line:
    key = f"line {width}"
    if key not in rows.derived:
        lens = np.asarray(rows.query_lens)
        windows = np.arange(lens.sum()) + np.repeat(np.arange(len(lens)) * (width - 1), lens)
        states = windows[:, None] + np.arange(1, width)
        indices = (windows, states, states[np.cumsum(lens) - 1])
        rows.derived[key] = Line(*(torch.from_numpy(index).to(rows.blocks.device) for index in indices))
    return rows.derived[key]


def _starts(lens: np.ndarray) -> np.ndarray:
    return np.cumsum(lens) - lens
