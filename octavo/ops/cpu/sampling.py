"""From logits to tokens by the compiled kernels, for any floating dtype that they know; others go to torch."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo import _cpu
from octavo.ops.cpu.linear import NUMBER
from octavo.ops.cpu.memory import empty
from octavo.ops.torch import sampling as specification

INT64, FLOAT32, FLOAT64 = torch.int64, torch.float32, torch.float64


def choose_tokens(
    logits_SV: Tensor,
    temperature_S: Tensor,
    top_k_S: Tensor,
    top_p_S: Tensor,
    min_p_S: Tensor,
    seeds_S: Tensor,
    positions_S: Tensor,
) -> tuple[Tensor, Tensor]:
    rows = _rows(logits_SV)
    if rows is None or not (
        _is_column(temperature_S, FLOAT32)
        and _is_column(top_k_S, INT64)
        and _is_column(top_p_S, FLOAT32)
        and _is_column(min_p_S, FLOAT32)
        and _is_column(seeds_S, INT64)
        and _is_column(positions_S, INT64)
    ):
        return specification.choose_tokens(logits_SV, temperature_S, top_k_S, top_p_S, min_p_S, seeds_S, positions_S)
    ids_S, greatest_S = empty((rows[2],), INT64), empty((rows[2],), FLOAT32)
    _cpu.choose_tokens(
        rows,
        temperature_S.data_ptr(),
        top_k_S.data_ptr(),
        top_p_S.data_ptr(),
        min_p_S.data_ptr(),
        seeds_S.data_ptr(),
        positions_S.data_ptr(),
        ids_S.data_ptr(),
        greatest_S.data_ptr(),
    )
    return ids_S, greatest_S


def argmax(logits_SV: Tensor) -> tuple[Tensor, Tensor]:
    rows = _rows(logits_SV)
    if rows is None:
        return specification.argmax(logits_SV)
    ids_S, greatest_S = empty((rows[2],), INT64), empty((rows[2],), logits_SV.dtype)
    _cpu.argmax(rows, ids_S.data_ptr(), greatest_S.data_ptr())
    return ids_S, greatest_S


def sample(logits_SV: Tensor, uniform_S: Tensor) -> Tensor:
    rows = _rows(logits_SV)
    if rows is None or not _is_column(uniform_S, FLOAT64):
        return specification.sample(logits_SV, uniform_S)
    ids_S = empty((rows[2],), INT64)
    _cpu.sample(rows, uniform_S.data_ptr(), ids_S.data_ptr())
    return ids_S


def mask_truncated(logits_SV: Tensor, top_k_S: Tensor, top_p_S: Tensor, min_p_S: Tensor) -> Tensor:
    rows = _rows(logits_SV)
    if rows is None or not (
        _is_column(top_k_S, INT64) and _is_column(top_p_S, FLOAT32) and _is_column(min_p_S, FLOAT32)
    ):
        return specification.mask_truncated(logits_SV, top_k_S, top_p_S, min_p_S)
    out_SV = empty((rows[2], rows[3]), logits_SV.dtype)
    _cpu.mask_truncated(rows, top_k_S.data_ptr(), top_p_S.data_ptr(), min_p_S.data_ptr(), out_SV.data_ptr())
    return out_SV


def row_uniform(seeds_S: Tensor, positions_S: Tensor) -> Tensor:
    if not (_is_column(seeds_S, INT64) and _is_column(positions_S, INT64)):
        return specification.row_uniform(seeds_S, positions_S)
    out_S = empty((seeds_S.shape[0],), FLOAT64)
    _cpu.row_uniform(seeds_S.data_ptr(), positions_S.data_ptr(), seeds_S.shape[0], out_S.data_ptr())
    return out_S


def gather_logprobs(logits_SV: Tensor, token_ids_S: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = _rows(logits_SV)
    if rows is None or not _is_column(token_ids_S, INT64):
        return specification.gather_logprobs(logits_SV, token_ids_S, num_top)
    num_top = min(num_top, rows[3])
    shape = rows[2], 1 + num_top
    ids, logprobs, ranks = empty(shape, INT64), empty(shape, FLOAT32), empty(shape, INT64)
    _cpu.gather_logprobs(rows, token_ids_S.data_ptr(), num_top, ids.data_ptr(), logprobs.data_ptr(), ranks.data_ptr())
    return ids, logprobs, ranks


def log_mass(logits_SV: Tensor) -> Tensor:
    rows = _rows(logits_SV)
    if rows is None or logits_SV.dtype != FLOAT32:
        return specification.log_mass(logits_SV)
    out_S1 = empty((rows[2], 1), FLOAT32)
    _cpu.log_mass(rows, out_S1.data_ptr())
    return out_S1


def token_ranks(logits_SV: Tensor, token_ids_SM: Tensor) -> Tensor:
    rows = _rows(logits_SV)
    if rows is None or token_ids_SM.dtype != INT64 or not token_ids_SM.is_contiguous():
        return specification.token_ranks(logits_SV, token_ids_SM)
    ranks_SM = empty(tuple(token_ids_SM.shape), INT64)
    _cpu.token_ranks(rows, token_ids_SM.data_ptr(), token_ids_SM.shape[1], ranks_SM.data_ptr())
    return ranks_SM


def apply_bitmask(logits_SV: Tensor, rows_K: Tensor, bits_KW: Tensor) -> None:
    rows = _rows(logits_SV)
    if rows is None or not (_is_column(rows_K, INT64) and bits_KW.dtype == torch.int32 and bits_KW.is_contiguous()):
        specification.apply_bitmask(logits_SV, rows_K, bits_KW)
        return
    _cpu.apply_bitmask(rows, rows_K.data_ptr(), rows_K.shape[0], bits_KW.data_ptr(), bits_KW.shape[1])


def apply_penalties(
    logits_SV: Tensor,
    prompt_mask_SV: Tensor,
    output_counts_SV: Tensor,
    repetition_S: Tensor,
    frequency_S: Tensor,
    presence_S: Tensor,
    slots_S: Tensor | None = None,
) -> Tensor:
    rows = _rows(logits_SV)
    if rows is None or not (
        logits_SV.dtype == FLOAT32
        and prompt_mask_SV.dtype == torch.bool
        and prompt_mask_SV.stride(1) == 1
        and output_counts_SV.dtype == torch.int32
        and output_counts_SV.stride(1) == 1
        and _is_column(repetition_S, FLOAT32)
        and _is_column(frequency_S, FLOAT32)
        and _is_column(presence_S, FLOAT32)
        and (slots_S is None or _is_column(slots_S, INT64))
    ):
        return specification.apply_penalties(
            logits_SV, prompt_mask_SV, output_counts_SV, repetition_S, frequency_S, presence_S, slots_S
        )
    out_SV = empty((rows[2], rows[3]), FLOAT32)
    _cpu.apply_penalties(
        rows,
        prompt_mask_SV.data_ptr(),
        prompt_mask_SV.stride(0),
        output_counts_SV.data_ptr(),
        output_counts_SV.stride(0),
        prompt_mask_SV.shape[0],
        0 if slots_S is None else slots_S.data_ptr(),
        repetition_S.data_ptr(),
        frequency_S.data_ptr(),
        presence_S.data_ptr(),
        out_SV.data_ptr(),
    )
    return out_SV


def _rows(logits_SV: Tensor) -> tuple[int, int, int, int, int] | None:
    """As the kernels take them."""
    kind = NUMBER.get(logits_SV.dtype)
    num_rows, vocab_size = logits_SV.shape
    stride, step = logits_SV.stride()
    if kind is None or step != 1 or vocab_size == 0:
        return None
    return logits_SV.data_ptr(), kind, num_rows, vocab_size, stride


def _is_column(values_S: Tensor, dtype: torch.dtype) -> bool:
    return values_S.dtype == dtype and values_S.is_contiguous()
