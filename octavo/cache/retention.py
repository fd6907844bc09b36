"""Which positions of a request must stay in the cache, and what a prefix hit may reuse.

A retention answers questions about counts and never touches a block. `block_size` is in tokens everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

Found = Callable[[int], bool]  # is block i of this request in the index?

# Why a state is kept at a border.
PROMPT, ANSWER, BRANCH = "end of the prompt", "end of the answer", "prompts branch here"


class Retention(Protocol):
    def first_live_block(self, num_computed: int, block_size: int) -> int:
        """Blocks before this one are never read again once `num_computed` tokens are computed."""

    def peak_blocks(self, num_tokens: int, block_size: int, chunk: int) -> int:
        """The most blocks a request of `num_tokens` holds at once, when computed `chunk` tokens at a time."""

    def longest_hit(self, num_blocks: int, block_size: int, found: Found) -> int:
        """The largest h <= num_blocks such that the state after block h-1 can be had from indexed blocks."""

    def blocks_of_hit(self, num_blocks: int, block_size: int) -> int:
        """The first block of a hit of `num_blocks` blocks that must be in the table; those before stay empty."""

    def table_width(self, num_tokens: int, block_size: int) -> int:
        """Places in the device's table of a row of up to `num_tokens`."""

    def describe(self, block_size: int) -> str:
        """What is kept, for people."""


@dataclass(frozen=True)
class KeepAll:
    """Every token attends to all before it."""

    def first_live_block(self, num_computed: int, block_size: int) -> int:
        return 0

    def peak_blocks(self, num_tokens: int, block_size: int, chunk: int) -> int:
        return -(-num_tokens // block_size)

    def longest_hit(self, num_blocks: int, block_size: int, found: Found) -> int:
        return next((i for i in range(num_blocks) if not found(i)), num_blocks)

    def blocks_of_hit(self, num_blocks: int, block_size: int) -> int:
        return 0

    def table_width(self, num_tokens: int, block_size: int) -> int:
        return -(-num_tokens // block_size)

    def describe(self, block_size: int) -> str:
        return "every token"


@dataclass(frozen=True)
class KeepWindow:
    """A token attends to itself and the `window` - 1 tokens before it."""

    window: int

    def first_live_block(self, num_computed: int, block_size: int) -> int:
        # the next token, at position num_computed, reads from num_computed - window + 1 on
        return max(0, num_computed - self.window + 1) // block_size

    def peak_blocks(self, num_tokens: int, block_size: int, chunk: int) -> int:
        return -(-min(num_tokens, self.window - 1 + chunk + block_size) // block_size)

    def longest_hit(self, num_blocks: int, block_size: int, found: Found) -> int:
        need = -(-(self.window - 1) // block_size)  # contiguous blocks that the next token can see
        if need == 0:
            return num_blocks
        run = 0
        for i in range(num_blocks - 1, -1, -1):  # from the right: the first run long enough ends at the longest hit
            run = run + 1 if found(i) else 0
            if run >= need or (run and i == 0):
                return i + run
        return 0

    def blocks_of_hit(self, num_blocks: int, block_size: int) -> int:
        return self.first_live_block(num_blocks * block_size, block_size)

    def table_width(self, num_tokens: int, block_size: int) -> int:
        return -(-num_tokens // block_size)

    def describe(self, block_size: int) -> str:
        return f"the last {self.window:,} tokens"


@dataclass(frozen=True)
class KeepLatest:
    """A recurrent state: only the one after the newest token is live. A prefix can be taken up again where a
    checkpoint, a copy of the state at a block border, was kept; `kept_borders` decides where."""

    checkpoint_every: int = 64  # blocks of a long prompt between checkpoints, at least
    max_checkpoints: int = 8  # of one prompt, beside its end and its branch

    def first_live_block(self, num_computed: int, block_size: int) -> int:
        return 0

    def peak_blocks(self, num_tokens: int, block_size: int, chunk: int) -> int:
        return 2  # the state, and a checkpoint that it is taken up from; other copies are made of what is to spare

    def longest_hit(self, num_blocks: int, block_size: int, found: Found) -> int:
        return next((i + 1 for i in range(num_blocks - 1, -1, -1) if found(i)), 0)

    def blocks_of_hit(self, num_blocks: int, block_size: int) -> int:
        return max(0, num_blocks - 1)

    def table_width(self, num_tokens: int, block_size: int) -> int:
        return 1

    def kept_borders(self, hit: int, end: int, branch: int) -> dict[int, str]:
        """The borders (counted in blocks) after `hit` at which a prompt's state is kept, and why. `end` is the last
        border that a hit of the same prompt may use, `branch` the one up to which an earlier prompt was the same."""
        every = max(self.checkpoint_every, -(-end // self.max_checkpoints))
        kept = dict.fromkeys(range(every, end, every), f"every {every} blocks")
        kept[branch] = BRANCH
        kept[end] = PROMPT
        return {border: why for border, why in kept.items() if hit < border <= end}

    def describe(self, block_size: int) -> str:
        return (
            f"one state a request; checkpoints at the end of every prompt, at the last border of {block_size} tokens "
            f"passed in decoding, where prompts branch, and every {self.checkpoint_every * block_size:,} tokens of a "
            f"prompt (at most {self.max_checkpoints}), of which those that a conversation has passed go first"
        )
