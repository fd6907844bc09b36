"""A step's tensors and the rows of broken ones, by compiled loops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo import _cpu
from octavo.ops.cpu.linear import NUMBER
from octavo.ops.cpu.memory import empty
from octavo.ops.torch import batch as specification


def build_batch(
    rows_R: Tensor,
    counts_R: Tensor,
    tokens: Tensor,
    computed: Tensor,
    block_tables: Sequence[Tensor],
    block_size: int,
    input_ids_T: Tensor,
    positions_T: Tensor,
    row_of_token_T: Tensor,
    query_start: Tensor,
    seq_lens_R: Tensor,
    slots: Sequence[Tensor],
    gathered: Sequence[Tensor],
) -> None:
    dense = (rows_R, counts_R, computed, input_ids_T, positions_T, row_of_token_T, query_start, seq_lens_R, *slots)
    if not all(map(Tensor.is_contiguous, dense)):
        specification.build_batch(
            rows_R,
            counts_R,
            tokens,
            computed,
            block_tables,
            block_size,
            input_ids_T,
            positions_T,
            row_of_token_T,
            query_start,
            seq_lens_R,
            slots,
            gathered,
        )
        return
    _cpu.build_batch(
        _integers(rows_R),
        _integers(counts_R),
        rows_R.shape[0],
        _table(tokens),
        computed.data_ptr(),
        [
            (
                table.data_ptr(),
                table.stride(0),
                table.shape[1],
                slots_T.data_ptr(),
                gathered_RB.data_ptr(),
                gathered_RB.stride(0),
                gathered_RB.shape[1],
            )
            for table, slots_T, gathered_RB in zip(block_tables, slots, gathered, strict=True)
        ],
        block_size,
        _integers(input_ids_T),
        input_ids_T.shape[0],
        positions_T.data_ptr(),
        row_of_token_T.data_ptr(),
        query_start.data_ptr(),
        seq_lens_R.data_ptr(),
    )


def append_sampled(rows_S: Tensor, token_ids_S: Tensor, tokens: Tensor, length: Tensor) -> None:
    if not (rows_S.is_contiguous() and token_ids_S.is_contiguous() and length.is_contiguous()):
        specification.append_sampled(rows_S, token_ids_S, tokens, length)
        return
    _cpu.append_sampled(_integers(rows_S), _integers(token_ids_S), rows_S.shape[0], _table(tokens), length.data_ptr())


def mark_bad_rows(hidden_TD: Tensor, row_of_token_T: Tensor, num_rows: int) -> Tensor:
    kind = NUMBER.get(hidden_TD.dtype)
    if kind is None or hidden_TD.stride(1) != 1 or not row_of_token_T.is_contiguous():
        return specification.mark_bad_rows(hidden_TD, row_of_token_T, num_rows)
    out = empty((num_rows,), torch.bool)
    num_tokens, size = hidden_TD.shape
    _cpu.mark_bad_rows(
        hidden_TD.data_ptr(),
        kind,
        hidden_TD.stride(0),
        num_tokens,
        size,
        row_of_token_T.data_ptr(),
        num_rows,
        out.data_ptr(),
    )
    return out


def _integers(values: Tensor) -> tuple[int, bool]:
    return values.data_ptr(), values.dtype == torch.int64


def _table(tokens: Tensor) -> tuple[int, int, int, int]:
    return tokens.data_ptr(), tokens.stride(0), tokens.shape[0], tokens.shape[1]
