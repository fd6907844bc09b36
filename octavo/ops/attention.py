"""Attention over the paged cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.ops.dispatch import bound


@dataclass(frozen=True)
class PrefixGroups:
    """Rows that share leading blocks, on the device and padded: an empty group has equal starts. A row is in one group
    at most, its queries come after the prefix, and the groups' blocks are equal in the rows' block tables."""

    rows: torch.Tensor  # [<= R] int32: the rows of the batch, group by group
    group_start: torch.Tensor  # [G + 1] int32, into `rows`
    blocks: torch.Tensor  # [G] int32: how many blocks are shared
    tokens: int  # query tokens of any of these rows, at most


def paged_attention(
    q_TNH: torch.Tensor,
    cache: torch.Tensor,
    block_table_RB: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens_R: torch.Tensor,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of each row's last query tokens over its own cache, their keys and values included.

    Row r's queries are q[query_start[r] : query_start[r + 1]], at positions ending with seq_lens[r] - 1. A query at
    position p sees positions p - window + 1 .. p (0 .. p without a window). Scores are q . k * scale, then, with a soft
    cap c, c * tanh(score / c). Head n reads key/value head n // (N / K). Softmax in float32; sinks [N] are logits that
    take part in that of every query, without values.
    cache as in `write_kv`; block_table [R, B] int32; query_start [R + 1] and seq_lens [R]
    int32. Only slots that are seen are read. Returns a contiguous [T, N, H] of q's dtype.
    """
    return bound.paged_attention(q_TNH, cache, block_table_RB, query_start, seq_lens_R, scale, window, soft_cap, sinks)
