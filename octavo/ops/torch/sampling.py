"""The specification of `octavo.ops.sampling`, and its portable implementation.

Over a large vocabulary torch's reductions that carry an index (argmax, topk) cost ten times a plain maximum. So rows
are looked at as blocks of BLOCK logits: a plain reduction a block, then the exact answer inside few blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
CANDIDATES = (128, 1024, 8192)  # how many of the largest logits truncation looks at before it sorts the row


def apply_penalties(
    logits_SV: Tensor,
    prompt_mask_SV: Tensor,
    output_counts_SV: Tensor,
    repetition_S: Tensor,
    frequency_S: Tensor,
    presence_S: Tensor,
    slots_S: Tensor | None = None,
) -> Tensor:
    """Only at the tokens that were seen, few of the vocabulary. Data-dependent: waits for the device."""
    if slots_S is not None:
        prompt_mask_SV, output_counts_SV = prompt_mask_SV[slots_S], output_counts_SV[slots_S]
    rows_M, token_ids_M = (prompt_mask_SV | output_counts_SV.bool()).nonzero(as_tuple=True)
    seen_M, counts_M = logits_SV[rows_M, token_ids_M], output_counts_SV[rows_M, token_ids_M]
    repetition_M = repetition_S[rows_M]
    seen_M = torch.where(seen_M > 0, seen_M / repetition_M, seen_M * repetition_M)
    seen_M = seen_M - frequency_S[rows_M] * counts_M - presence_S[rows_M] * (counts_M > 0)
    return logits_SV.index_put((rows_M, token_ids_M), seen_M)


def apply_bitmask(logits_SV: Tensor, rows_K: Tensor, bits_KW: Tensor) -> None:
    """A byte of the mask at a time, by a table of the 256 bytes there are: eight booleans each, held as one int64."""
    vocab_size = logits_SV.shape[1]
    values = torch.arange(256, dtype=torch.uint8, device=bits_KW.device)
    places = torch.arange(8, dtype=torch.uint8, device=bits_KW.device)
    is_out = ((values[:, None] >> places) & 1 == 0).view(torch.int64)[:, 0]
    out_K = is_out.index_select(0, bits_KW.view(torch.uint8).flatten().int())
    out_KV = out_K.view(torch.bool).view(rows_K.shape[0], -1)[:, :vocab_size]
    if rows_K.shape[0] == logits_SV.shape[0]:
        logits_SV.masked_fill_(out_KV, -torch.inf)
    else:
        logits_SV.index_copy_(0, rows_K, logits_SV[rows_K].masked_fill_(out_KV, -torch.inf))


def argmax(logits_SV: Tensor) -> tuple[Tensor, Tensor]:
    vocab_size = logits_SV.shape[1]
    if vocab_size < 4 * BLOCK:
        token_ids_S = logits_SV.argmax(-1)
    else:
        blocks_SNB = _blocks(logits_SV, -torch.inf)
        block_S = blocks_SNB.amax(-1).argmax(-1)
        token_ids_S = (block_S * BLOCK + _take_block(blocks_SNB, block_S).argmax(-1)).clamp_(max=vocab_size - 1)
    return token_ids_S, logits_SV.gather(1, token_ids_S[:, None])[:, 0]


def sample(logits_SV: Tensor, uniform_S: Tensor) -> Tensor:
    """Two levels: which block, by the float64 sums of the blocks, then which token of it."""
    weights_SNB = _blocks((logits_SV - logits_SV.amax(-1, keepdim=True)).exp_(), 0.0)
    block_S, share_S = _invert(weights_SNB.sum(-1), uniform_S.double())
    inside_S, _ = _invert(_take_block(weights_SNB, block_S), share_S)
    return (block_S * BLOCK + inside_S).clamp_(max=logits_SV.shape[1] - 1)


def _invert(weights_SN: Tensor, uniform_S: Tensor) -> tuple[Tensor, Tensor]:
    """The index that `uniform` of [0, 1) falls on when [0, 1) is divided by `weights`, and where inside, in [0, 1)."""
    ends_SN = weights_SN.cumsum(-1, dtype=torch.float64)
    total_S1 = ends_SN[:, -1:]
    target_S1 = uniform_S[:, None] * total_S1  # below the total also when rounded, for uniform up to 1 - 2**-53
    index_S1 = torch.searchsorted(ends_SN, target_S1, right=True).clamp_(max=weights_SN.shape[1] - 1)
    weight_S1 = weights_SN.gather(1, index_S1).double()
    share_S1 = 1.0 - (ends_SN.gather(1, index_S1) - target_S1) / weight_S1
    return index_S1[:, 0], share_S1[:, 0].clamp(0.0, 1.0 - 2.0**-53)


def choose_tokens(
    logits_SV: Tensor,
    temperature_S: Tensor,
    top_k_S: Tensor,
    top_p_S: Tensor,
    min_p_S: Tensor,
    seeds_S: Tensor,
    positions_S: Tensor,
) -> tuple[Tensor, Tensor]:
    is_greedy_S = temperature_S == 0
    scaled_SV = logits_SV.float() / torch.where(is_greedy_S, 1.0, temperature_S)[:, None]
    token_ids_S, greatest_S = argmax(scaled_SV)
    kept_SV = mask_truncated(scaled_SV, top_k_S, top_p_S, min_p_S)
    return torch.where(is_greedy_S, token_ids_S, sample(kept_SV, row_uniform(seeds_S, positions_S))), greatest_S


def row_uniform(seeds_S: Tensor, positions_S: Tensor) -> Tensor:
    """SplitMix64 (Steele, Lea, Flood 2014): stream `mix(seed)`, element `position`; the top 53 bits make the float."""
    state_S = _mix64(seeds_S + _GOLDEN) + (positions_S + 1) * _GOLDEN
    return _shift_right(_mix64(state_S), 11).double() * 2.0**-53


def _signed(bits: int) -> int:
    return bits - 2**64 if bits >= 2**63 else bits


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST_MULTIPLIER = _signed(0xBF58476D1CE4E5B9)
_SECOND_MULTIPLIER = _signed(0x94D049BB133111EB)


def _mix64(value_S: Tensor) -> Tensor:
    """SplitMix64's finaliser. int64 arithmetic wraps around like the unsigned one; only shifts need care."""
    value_S = (value_S ^ _shift_right(value_S, 30)) * _FIRST_MULTIPLIER
    value_S = (value_S ^ _shift_right(value_S, 27)) * _SECOND_MULTIPLIER
    return value_S ^ _shift_right(value_S, 31)


def _shift_right(value_S: Tensor, num_bits: int) -> Tensor:
    """A shift that brings in zeros, as of an unsigned number."""
    return (value_S >> num_bits) & ((1 << (64 - num_bits)) - 1)


def gather_logprobs(logits_SV: Tensor, token_ids_S: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    num_top = min(num_top, logits_SV.shape[1])
    chosen_S1 = logits_SV.gather(1, token_ids_S[:, None])
    chosen_rank_S1 = token_ranks(logits_SV, token_ids_S[:, None])
    top_SN, top_ids_SN = _top_values(logits_SV, num_top)
    places_SN = torch.arange(num_top, device=logits_SV.device).expand_as(top_ids_SN)
    starts_SN = torch.ones_like(top_SN, dtype=torch.bool)  # where a run of equal logits starts
    starts_SN[:, 1:] = top_SN[:, 1:] != top_SN[:, :-1]
    top_ranks_SN = 1 + (places_SN * starts_SN).cummax(-1).values if num_top else top_ids_SN
    return (
        torch.cat([token_ids_S[:, None], top_ids_SN], dim=1),
        torch.cat([chosen_S1, top_SN], dim=1) - logits_SV.logsumexp(-1, keepdim=True),
        torch.cat([chosen_rank_S1, top_ranks_SN], dim=1),
    )


def log_mass(logits_SV: Tensor) -> Tensor:
    return logits_SV.logsumexp(-1, keepdim=True)


def token_ranks(logits_SV: Tensor, token_ids_SM: Tensor) -> Tensor:
    """A pass over the logits for each column: with few of them, as is usual, far less than a sort."""
    ranks_SM = torch.empty_like(token_ids_SM)
    # Comparing into float32 and adding that is many times faster than adding booleans, and exact below 2**24 tokens.
    above_SV = torch.empty_like(logits_SV)
    for place, chosen_S in enumerate(logits_SV.gather(1, token_ids_SM).unbind(1)):
        torch.gt(logits_SV, chosen_S[:, None], out=above_SV)
        ranks_SM[:, place] = 1 + above_SV.sum(-1).long()
    return ranks_SM


def mask_truncated(logits_SV: Tensor, top_k_S: Tensor, top_p_S: Tensor, min_p_S: Tensor) -> Tensor:
    """Each round looks at the largest logits of the rows still open: all that a row keeps, and the next below them,
    settles it. Rows that keep more go on to a longer list, at last to a sort. Data-dependent: waits for the device."""
    vocab_size = logits_SV.shape[1]
    greatest_S = logits_SV.amax(-1)
    kept_SV = torch.full_like(logits_SV, -torch.inf)
    is_off_S = (top_k_S <= 0) & (top_p_S >= 1) & (min_p_S <= 0)
    if is_off_S.any():
        kept_SV[is_off_S] = logits_SV[is_off_S]
    open_R = (torch.isfinite(greatest_S) & ~is_off_S).nonzero()[:, 0]
    for num_candidates in (*(count for count in CANDIDATES if 2 * count <= vocab_size), vocab_size):
        if not open_R.numel():
            break
        logits_RV = logits_SV if open_R.numel() == logits_SV.shape[0] else logits_SV[open_R]
        values_RB, ids_RB = _ordered_candidates(logits_RV, num_candidates)
        keep_RB, is_settled_R = _keep(
            values_RB, logits_RV, greatest_S[open_R], top_k_S[open_R], top_p_S[open_R].double(), min_p_S[open_R]
        )
        rows_R1 = open_R[is_settled_R][:, None]
        kept_SV[rows_R1, ids_RB[is_settled_R]] = values_RB.masked_fill(~keep_RB, -torch.inf)[is_settled_R]
        open_R = open_R[~is_settled_R]
    return kept_SV


def _keep(
    values_RB: Tensor, logits_RV: Tensor, greatest_R: Tensor, top_k_R: Tensor, top_p_R: Tensor, min_p_R: Tensor
) -> tuple[Tensor, Tensor]:
    """Which of the B largest logits each row keeps, and whether these B decide it."""
    num_candidates = values_RB.shape[1]
    is_whole_row = num_candidates == logits_RV.shape[1]
    last_R = values_RB[:, -1]
    kth_R = values_RB.gather(1, (top_k_R.clamp(1, num_candidates) - 1)[:, None])[:, 0]
    floor_R = torch.maximum(greatest_R + min_p_R.log(), torch.where(top_k_R > 0, kth_R, -torch.inf))
    has_all_R = torch.full_like(top_k_R, is_whole_row, dtype=torch.bool)  # every logit over the floor is here
    has_all_R |= last_R < floor_R

    weights_RB = (values_RB - greatest_R[:, None]).exp().double() * (values_RB >= floor_R[:, None])
    ends_RB = weights_RB.cumsum(-1)
    mass_R = ends_RB[:, -1]
    if not has_all_R.all():
        whole_RN = _blocks((logits_RV - greatest_R[:, None]).exp_(), 0.0).sum(-1)
        mass_R = torch.where(has_all_R, mass_R, whole_RN.sum(-1, dtype=torch.float64))
    smallest = torch.finfo(torch.float64).tiny  # the likeliest token always stays
    wanted_R = torch.where(top_p_R < 1, (top_p_R * mass_R).clamp_(min=smallest), torch.inf)
    before_RB = torch.cat([torch.zeros_like(ends_RB[:, :1]), ends_RB[:, :-1]], dim=1)
    keep_RB = (values_RB >= floor_R[:, None]) & (before_RB < wanted_R[:, None])

    # top_p alone may be settled by a beginning of the row, unless the list breaks off inside a run of equal logits.
    least_kept_R = values_RB.gather(1, keep_RB.sum(-1, keepdim=True).clamp(min=1) - 1)[:, 0]
    is_prefix_enough_R = (floor_R == -torch.inf) & (ends_RB[:, -1] >= wanted_R) & (last_R < least_kept_R)
    return keep_RB, has_all_R | is_prefix_enough_R


def _ordered_candidates(logits_SV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row and their ids: largest first, equal ones by id."""
    if count < logits_SV.shape[1]:
        values_SB, ids_SB = _top_values(logits_SV, count)
        ids_SB, by_id_SB = ids_SB.sort(-1)
        values_SB, order_SB = values_SB.gather(1, by_id_SB).sort(stable=True, dim=-1, descending=True)
        return values_SB, ids_SB.gather(1, order_SB)
    values_SV, ids_SV = logits_SV.sort(stable=True, dim=-1, descending=True)
    return values_SV, ids_SV


def _top_values(logits_SV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`torch.topk`. The `count` largest of a row lie in the `count` blocks with the largest maxima."""
    vocab_size = logits_SV.shape[1]
    if not 0 < count * BLOCK * 4 <= vocab_size:
        return logits_SV.topk(count, -1)
    tail_size = vocab_size % BLOCK  # what is left after whole blocks is always looked at
    blocks_SNB = _blocks(logits_SV[:, : vocab_size - tail_size], -torch.inf)
    block_ids_SK = blocks_SNB.amax(-1).topk(count, -1, sorted=False).indices
    inside_B = torch.arange(BLOCK, device=logits_SV.device)
    in_blocks_SM = (block_ids_SK[:, :, None] * BLOCK + inside_B).flatten(1)
    in_tail_SM = torch.arange(vocab_size - tail_size, vocab_size, device=logits_SV.device).expand(len(logits_SV), -1)
    token_ids_SM = torch.cat([in_blocks_SM, in_tail_SM], dim=1)
    values_SK, places_SK = logits_SV.gather(1, token_ids_SM).topk(count, -1)
    return values_SK, token_ids_SM.gather(1, places_SK)


def _blocks(values_SV: Tensor, fill: float) -> Tensor:
    """[S, V] as [S, N, BLOCK]; the last block is filled up."""
    num_missing = -values_SV.shape[1] % BLOCK
    if num_missing:
        values_SV = torch.nn.functional.pad(values_SV, (0, num_missing), value=fill)
    return values_SV.reshape(values_SV.shape[0], values_SV.shape[1] // BLOCK, BLOCK)


def _take_block(blocks_SNB: Tensor, block_S: Tensor) -> Tensor:
    """One block of each row, [S, BLOCK]."""
    return blocks_SNB.gather(1, block_S[:, None, None].expand(-1, 1, blocks_SNB.shape[2]))[:, 0]
