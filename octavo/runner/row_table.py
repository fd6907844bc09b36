"""A permanent row for each live request: what only the device knows between steps.

Rows never move. Tables are written from plans (in order, in batches) and advanced by the runner after each step, so the
next step can be built before the host has seen this one's tokens. The host mirrors counts alone, never token ids.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import torch

from octavo.core.step import BlockIds, StepPlan


class RowTable:
    """`tokens[row, :length[row]]` are known to the device, `computed[row]` of them are in the cache."""

    def __init__(self, max_rows: int, max_tokens: int, max_blocks: Sequence[int], device: torch.device) -> None:
        self.tokens = torch.zeros(max_rows, max_tokens + 1, dtype=torch.int32, device=device)
        self.length = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.prompt_length = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.computed = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.block_tables = [torch.zeros(max_rows, n, dtype=torch.int32, device=device) for n in max_blocks]
        self.computed_host = np.zeros(max_rows, dtype=np.int64)
        self.row_of: dict[str, int] = {}
        self._num_blocks = [[0] * max_rows for _ in max_blocks]
        self._free = list(range(max_rows))

    def apply(self, plan: StepPlan) -> tuple[list[int], list[int]]:
        """Rows leave, arrive and grow as planned. Returns the rows that were removed and those that are new."""
        removed = []
        for request_id in plan.removed:
            row = self.row_of.pop(request_id, None)
            if row is not None:
                heapq.heappush(self._free, row)
                removed.append(row)
        added = []
        writes: list[tuple[int, BlockIds]] = []
        for new in plan.new_rows:
            row = self.row_of[new.request_id] = heapq.heappop(self._free)
            added.append(row)
            for lengths in self._num_blocks:
                lengths[row] = 0
            known = len(new.token_ids)
            self.tokens[row, :known] = torch.tensor(new.token_ids, dtype=torch.int32)
            self.length[row] = known
            self.prompt_length[row] = new.num_prompt_tokens
            self.computed[row] = new.num_computed_tokens
            self.computed_host[row] = new.num_computed_tokens
            writes.append((row, new.block_ids))
        for request_id, num_tokens in plan.skipped_tokens.items():
            row = self.row_of[request_id]
            self.computed[row] += num_tokens
            self.computed_host[row] += num_tokens
        writes += [(self.row_of[request_id], ids) for request_id, ids in plan.new_block_ids.items()]
        self._write_blocks(writes)
        return removed, added

    def _write_blocks(self, writes: list[tuple[int, BlockIds]]) -> None:
        """All of a step's new block ids in one write a group."""
        for group, table in enumerate(self.block_tables):
            rows: list[int] = []
            columns: list[int] = []
            values: list[int] = []
            lengths = self._num_blocks[group]
            for row, block_ids in writes:
                ids = block_ids[group]
                start = lengths[row]
                lengths[row] = start + len(ids)
                if len(ids) == 1:
                    rows.append(row)
                    columns.append(start)
                    values.append(ids[0])
                else:
                    rows += [row] * len(ids)
                    columns += range(start, start + len(ids))
                    values += ids
            if rows:
                at = torch.tensor([rows, columns, values], device=table.device)
                table.index_put_((at[0], at[1]), at[2].to(torch.int32))

    def append_sampled(self, rows: torch.Tensor, token_ids: torch.Tensor) -> None:
        """`rows` [S] got one token each."""
        self.tokens[rows, self.length[rows]] = token_ids.to(torch.int32)
        self.length[rows] += 1

    def blocks(self, row: int) -> dict[int, list[int]]:
        """The blocks of a row, by group."""
        return {
            group: table[row, : self._num_blocks[group][row]].tolist() for group, table in enumerate(self.block_tables)
        }

    def clear(self) -> None:
        for row in self.row_of.values():
            heapq.heappush(self._free, row)
        self.row_of.clear()
