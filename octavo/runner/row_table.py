"""A permanent row for each live request: what only the device knows between steps.

Rows never move. Tables are written from plans (in order, in batches) and advanced by the runner after each step, so the
next step can be built before the host has seen this one's tokens. The host mirrors counts alone, never token ids.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from octavo.core.step import BlockIds, NewRow, StepPlan
from octavo.ops.batch import append_sampled
from octavo.ops.device import upload_array


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
            self.computed_host[row] = new.num_computed_tokens
            writes.append((row, new.block_ids))
        if added:
            self._write_new(added, plan.new_rows)
        if plan.skipped_tokens:
            self._write_skipped(plan.skipped_tokens)
        writes += [(self.row_of[request_id], ids) for request_id, ids in plan.new_block_ids.items()]
        self._write_blocks(writes)
        return removed, added

    def _write_new(self, rows: list[int], new_rows: Sequence[NewRow]) -> None:
        """Tokens and counts of new rows, in one upload."""
        width, counts = self.tokens.shape[1], [len(new.token_ids) for new in new_rows]
        starts = np.array(rows, dtype=np.int64) * width
        firsts = np.cumsum([0, *counts[:-1]])
        places = np.arange(sum(counts)) + np.repeat(starts - firsts, counts)
        numbers = [rows, counts, [new.num_prompt_tokens for new in new_rows]]
        numbers.append([new.num_computed_tokens for new in new_rows])
        token_ids = np.concatenate([np.array(new.token_ids, dtype=np.int64) for new in new_rows])
        packed = upload_array(np.concatenate([places, token_ids, *numbers]).astype(np.int64), self.computed.device)
        at, ids, row, length, prompt, computed = packed.split([len(places)] * 2 + [len(rows)] * 4)
        self.tokens.view(-1)[at] = ids.to(torch.int32)
        self.length[row], self.prompt_length[row], self.computed[row] = length, prompt, computed

    def _write_skipped(self, skipped: Mapping[str, int]) -> None:
        pairs = np.array([[self.row_of[request_id], num_tokens] for request_id, num_tokens in skipped.items()])
        self.computed_host[pairs[:, 0]] += pairs[:, 1]
        rows, num_tokens = upload_array(np.ascontiguousarray(pairs.T), self.computed.device)
        self.computed.index_add_(0, rows, num_tokens)

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
                at = upload_array(np.array([rows, columns, values], dtype=np.int64), table.device)
                table.index_put_((at[0], at[1]), at[2].to(torch.int32))

    def append_sampled(self, rows: torch.Tensor, token_ids: torch.Tensor) -> None:
        """`rows` [S] got one token each."""
        append_sampled(rows, token_ids, self.tokens, self.length)

    def blocks(self, row: int) -> dict[int, list[int]]:
        """The blocks of a row, by group."""
        return {
            group: table[row, : self._num_blocks[group][row]].tolist() for group, table in enumerate(self.block_tables)
        }

    def clear(self) -> None:
        for row in self.row_of.values():
            heapq.heappush(self._free, row)
        self.row_of.clear()
