from __future__ import annotations

import torch

from octavo.attention.backend import GroupStep, StepContext


def test_a_step_of_last_tokens_has_one_of_each_row_and_none_of_padding() -> None:
    """Four rows, the last two of padding, and three tokens of padding."""
    table, slots = torch.arange(8).view(4, 2), torch.tensor([30, 40, 41, 42, -1, -1, -1])
    step = StepContext(
        positions=torch.tensor([9, 4, 5, 6, 0, 0, 0]),
        query_start=torch.tensor([0, 1, 4, 4, 4], dtype=torch.int32),
        seq_lens=torch.tensor([10, 7, 0, 0], dtype=torch.int32),
        query_lens=[1, 3, 0, 0],
        max_seq_lens=[10, 7, 0, 0],
        groups=[GroupStep(table, slots, plan="of another step")],
        rows=torch.tensor([5, 2, 0, 0]),
        extras={"some": 1},
        last_tokens=torch.tensor([0, 3, 3, 3]),
    )
    ends = step.of_last_tokens()
    assert (ends.num_tokens, ends.num_rows, ends.query_lens) == (4, 4, [1, 1, 0, 0])
    assert ends.query_start.tolist() == [0, 1, 2, 2, 2]
    assert ends.query_start.dtype == torch.int32
    assert ends.positions[:2].tolist() == [9, 6]
    assert ends.seq_lens is step.seq_lens
    assert ends.groups[0].block_table is table
    assert ends.groups[0].slots[:2].tolist() == [30, 42]
    assert ends.groups[0].plan is None
    assert ends.extras == {"some": 1}
    assert ends.last_tokens is not None
    assert ends.last_tokens.tolist() == [0, 1, 1, 1]


def test_a_step_without_rows_has_a_place_for_each() -> None:
    """As in a rehearsal, where nothing has written the batch."""
    nothing = torch.zeros(3, dtype=torch.int32)
    step = StepContext(
        torch.zeros(8, dtype=torch.int64),
        nothing,
        nothing[1:],
        [4, 4],
        [4, 4],
        [],
        nothing[1:],
        last_tokens=nothing[1:],
    )
    ends = step.of_last_tokens()
    assert ends.last_tokens is not None
    assert ends.last_tokens.tolist() == [0, 0]
