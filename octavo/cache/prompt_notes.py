"""Log-probabilities of prompts as annotations of the prefix index: who leaves them, whom they serve, who waits.

A block's note has the rows of its own positions. All but the last score a token of the block itself and so hold for
whoever has the block; the last scores the token after the block, and serves those whose prompt goes on with that one.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.cache.block import Block
from octavo.cache.groups import CacheGroup
from octavo.cache.prefix import PrefixIndex
from octavo.cache.retention import KeepAll, KeepLatest, Retention
from octavo.core.prompt_logprobs import PromptRows, PromptScores
from octavo.core.request import Request

_OVERHEAD = 400  # bytes that a note takes beside its rows


class PromptNotes:
    """Notes lie with the blocks of one group: of one that keeps everything, where there is one, since its blocks go
    last. Where all layers are recurrent, blocks are found only where a state was kept; a note there has the rows since
    the note before it."""

    def __init__(self, index: PrefixIndex, groups: Sequence[CacheGroup], block_size: int) -> None:
        self._index, self._block_size = index, block_size
        retentions = [group.retention for group in groups]
        self._group = min(range(len(groups)), key=lambda group: _losses(retentions[group]))
        self._is_sparse = isinstance(retentions[self._group], KeepLatest)

    def gather(self, request: Request, scores: PromptScores) -> None:
        """Gives the request what the index has for it. Its block hashes are up to date."""
        if not scores.is_shared:
            return
        size, hashes, limit = self._block_size, request.block_hashes, scores.limit_of_shared
        block_idx = scores.frontier // size
        while scores.frontier < limit and block_idx < len(hashes):
            rows = self._rows(hashes[block_idx], scores)
            block_idx += 1
            if rows is None:
                if self._is_sparse:
                    continue
                return
            end = min(rows.end, limit)
            if end == block_idx * size and rows.next_token(end - 1) != request.token_ids[end]:
                end -= 1
            if end <= scores.frontier:
                return
            scores.add(rows.part(scores.frontier, end, scores.width))
            scores.frontier = end
            if end < block_idx * size:
                return

    def _rows(self, block_hash: bytes, scores: PromptScores) -> PromptRows | None:
        """A note that can serve at the frontier."""
        block = self._index.find(self._group, block_hash)
        rows: PromptRows | None = None if block is None else self._index.annotation(block, scores.kind)
        if rows is None or rows.width < scores.width or not rows.first <= scores.frontier < rows.end:
            return None
        return rows

    def leave(self, request: Request, scores: PromptScores) -> None:
        """Offers the rows that have come since the last time."""
        if not scores.is_shared or scores.is_sent:
            return
        size, hashes = self._block_size, request.block_hashes
        for block_idx in range(scores.num_noted // size, len(hashes)):
            first, end = block_idx * size, min((block_idx + 1) * size, scores.known)
            if end <= first or (end < first + size and (end < scores.end or self._is_sparse)):
                return  # not all of it is here
            block = self._index.find(self._group, hashes[block_idx])
            if block is None and self._is_sparse:
                continue
            if block is not None:
                self._leave(request, scores, block, scores.num_noted if self._is_sparse else first, end)
            scores.num_noted = end

    def _leave(self, request: Request, scores: PromptScores, block: Block, first: int, end: int) -> None:
        old: PromptRows | None = self._index.annotation(block, scores.kind)
        if old is not None and old.first <= first and old.end >= end and old.width >= scores.width:
            goes_on_alike = end % self._block_size or old.next_token(end - 1) == request.token_ids[end]
            if old.width > scores.width or goes_on_alike:
                return
        rows = scores.part(first, end)
        self._index.annotate(block, scores.kind, rows, rows.num_bytes + _OVERHEAD)

    # who waits for whom

    def claims(self, request: Request, end: int) -> list[bytes]:
        """What the request, about to compute up to block `end`, will leave notes of."""
        scores = request.scores
        if scores is None or not scores.is_shared or scores.is_planned or not self._index.annotation_bytes:
            return []
        return [claim_of(scores, one) for one in request.block_hashes[scores.frontier // self._block_size : end]]


def _losses(retention: Retention) -> int:
    """How much is gone early, to choose by."""
    return 0 if isinstance(retention, KeepAll) else 2 if isinstance(retention, KeepLatest) else 1


def claim_of(scores: PromptScores, block_hash: bytes) -> bytes:
    """The name under which an index knows who computes a block's rows."""
    return scores.kind.encode() + block_hash


def serves(owner: PromptScores | None, scores: PromptScores) -> bool:
    """Will the rows of `owner` do for `scores`?"""
    return owner is not None and owner.is_shared and owner.kind == scores.kind and owner.num_top >= scores.num_top
