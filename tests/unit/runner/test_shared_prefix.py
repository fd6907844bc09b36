"""Groups of rows at fixed addresses."""

from __future__ import annotations

from typing import Any

import torch

from octavo.attention.backend import SHARED_PREFIX, StepContext
from octavo.core.step import MAX_PREFIX_GROUPS, StepPlan
from octavo.ops.attention import PrefixGroups
from octavo.runner.batch import Batch
from octavo.runner.shared_prefix import SharedPrefix


def batch_of(request_ids: list[str], num_rows: int = 8) -> Batch:
    nothing: Any = torch.zeros(0)
    step = StepContext(nothing, nothing, nothing, [0] * num_rows, [0] * num_rows, [], nothing)
    return Batch(request_ids, [], nothing, nothing, step, None, nothing, [])


def build(
    extension: SharedPrefix, request_ids: list[str], groups: list[tuple[list[str], int]]
) -> tuple[PrefixGroups | None, Any]:
    batch = batch_of(request_ids)
    extension.build(batch, StepPlan(0, dict.fromkeys(request_ids, 1), shared_prefix=groups))
    return batch.step.extras.get(SHARED_PREFIX), extension.graph_key(batch)


def members(groups: PrefixGroups | None) -> list[tuple[list[int], int]]:
    assert groups is not None
    starts, rows = groups.group_start.tolist(), groups.rows.tolist()
    assert len(starts) == MAX_PREFIX_GROUPS + 1 and len(rows) == 8
    found = [(rows[starts[i] : starts[i + 1]], blocks) for i, blocks in enumerate(groups.blocks.tolist())]
    return [group for group in found if group != ([], 0)]


def test_groups_follow_their_requests_through_the_batch_at_fixed_addresses() -> None:
    extension = SharedPrefix(10, torch.device("cpu"))
    order, groups = list("abcdef"), [(["b", "d", "e"], 40), (["f", "a"], 20)]
    first, key = build(extension, order, groups)
    assert members(first) == [([1, 3, 4], 40), ([5, 0], 20)]
    again, same_key = build(extension, list("fedcba"), groups)  # the batch's order is another
    assert members(again) == [([4, 2, 1], 40), ([0, 5], 20)]
    fewer, _ = build(extension, order, groups[1:])
    assert members(fewer) == [([5, 0], 20)]
    assert first is not None and fewer is not None and key == same_key
    for name in ("rows", "group_start", "blocks"):
        assert getattr(first, name).data_ptr() == getattr(fewer, name).data_ptr()
    none, other_key = build(extension, order, [])
    assert none is None and other_key != key


def test_what_stays_is_not_written_again() -> None:
    extension = SharedPrefix(10, torch.device("cpu"))
    order, groups = list("abcd"), [(["b", "d"], 40)]
    build(extension, order, groups)
    extension._buffer.fill_(7)
    kept, _ = build(extension, order, list(groups))
    assert kept is not None and kept.rows.tolist() == [7] * 8
    written, _ = build(extension, list(order), groups)
    assert members(written) == [([1, 3], 40)]
