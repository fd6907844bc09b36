"""One request's places in one cache group: a table of blocks, or a state and its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.cache.block import Block
from octavo.cache.retention import Retention


@dataclass(slots=True)
class PagedTable:
    """`blocks[i]` holds tokens i * block_size on; null when trimmed or never needed. `live` counts the others."""

    retention: Retention
    block_size: int
    null: Block
    blocks: list[Block] = field(default_factory=list)
    live: int = 0
    trimmed: int = 0  # blocks before this one are null

    def need(self, end: int) -> int:
        """Blocks to take before token `end` - 1 can be written."""
        return max(0, -(-end // self.block_size) - len(self.blocks))

    def append(self, block: Block) -> None:
        """`extend` by one block that is not null."""
        self.blocks.append(block)
        self.live += 1

    def extend(self, blocks: list[Block]) -> list[int]:
        """The ids that a row's table grows by."""
        self.blocks += blocks
        ids = [block.block_id for block in blocks]
        self.live += len(ids) - ids.count(0)
        return ids

    def ids(self) -> list[int]:
        return [block.block_id for block in self.blocks]

    def held(self) -> list[Block]:
        """Every referenced block, the end of the chain first."""
        return [block for block in reversed(self.blocks) if block.block_id]

    def trim(self, num_computed: int) -> list[Block]:
        """Lets go of what the token at `num_computed` can no longer see; returns it, latest first."""
        first = min(self.retention.first_live_block(num_computed, self.block_size), len(self.blocks))
        if first <= self.trimmed:
            return []
        gone = [block for block in self.blocks[self.trimmed : first] if block.block_id]
        self.blocks[self.trimmed : first] = [self.null] * (first - self.trimmed)
        self.trimmed = first
        self.live -= len(gone)
        return gone[::-1]


@dataclass(slots=True)
class StateTable:
    """`state` is read and overwritten by every step of the request. `rolling` is a copy as it was at block border
    `rolling_border` (counted in blocks), the last one passed in decoding; nobody else can see it until the end. `mark`
    is a copy as it was after `mark_tokens` tokens, to which drafts are rolled back."""

    state: Block | None = None
    rolling: Block | None = None
    rolling_border: int = 0
    mark: Block | None = None
    mark_tokens: int = 0

    @property
    def live(self) -> int:
        return len(self.held())

    def need(self, end: int) -> int:
        return 1 if self.state is None else 0

    def extend(self, blocks: list[Block]) -> list[int]:
        if not blocks:
            return []
        (self.state,) = blocks
        return [self.state.block_id]

    def ids(self) -> list[int]:
        return [] if self.state is None else [self.state.block_id]

    def held(self) -> list[Block]:
        return [block for block in (self.state, self.rolling, self.mark) if block is not None]
