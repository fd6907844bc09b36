"""From logits to tokens: penalties, truncation, the draw itself, log-probabilities. S rows of V vocabulary entries."""

from __future__ import annotations

from torch import Tensor

from octavo.ops.dispatch import bound


def apply_penalties(
    logits_SV: Tensor,
    prompt_mask_SV: Tensor,
    output_counts_SV: Tensor,
    repetition_S: Tensor,
    frequency_S: Tensor,
    presence_S: Tensor,
    slots_S: Tensor | None = None,
) -> Tensor:
    """Penalised logits, a new tensor.

    Tokens in the prompt (bool mask) or the output (int32 counts > 0) have positive logits divided and negative ones
    multiplied by `repetition` (CTRL, arXiv 1909.05858); then `frequency` times the count and, once, `presence` are
    subtracted for tokens of the output (OpenAI's definition). With `slots` (int64) a row's mask and counts are those
    at its slot of larger tables.
    """
    return bound.apply_penalties(
        logits_SV, prompt_mask_SV, output_counts_SV, repetition_S, frequency_S, presence_S, slots_S
    )


def apply_bitmask(logits_SV: Tensor, rows_K: Tensor, bits_KW: Tensor) -> None:
    """Sets the logits that a mask rules out to minus infinity, in place.

    `rows_K` (int64, ascending) are K rows of `logits`; token t is bit t % 32 of the int32 word t // 32 of `bits`, whose
    W words cover the vocabulary. A bit of 0 rules it out.
    """
    bound.apply_bitmask(logits_SV, rows_K, bits_KW)


def mask_truncated(logits_SV: Tensor, top_k_S: Tensor, top_p_S: Tensor, min_p_S: Tensor) -> Tensor:
    """Logits with what min_p, then top_k, then top_p drop set to minus infinity, a new tensor.

    * min_p keeps tokens at least `min_p` times as likely as the likeliest; 0 is off.
    * top_k keeps every token whose logit is at least the k-th largest, so ties at the border all stay; 0 is off.
    * top_p keeps, of what is left and renormalised, the fewest tokens whose mass reaches `top_p`; among equal logits
      the lower id comes first; 1 is off.

    A row without a finite maximum comes back as all minus infinity, unless all three are off.
    """
    return bound.mask_truncated(logits_SV, top_k_S, top_p_S, min_p_S)


def argmax(logits_SV: Tensor) -> tuple[Tensor, Tensor]:
    """(ids int64 [S], their logits [S]). The lowest id among equals. A NaN in a row shows in its logit."""
    return bound.argmax(logits_SV)


def sample(logits_SV: Tensor, uniform_S: Tensor) -> Tensor:
    """Ids int64 [S] drawn from softmax(logits) by inverse transform of one float64 of [0, 1) a row.

    Tokens of probability 0 are never drawn. A row without a finite maximum gives some id of the vocabulary.
    """
    return bound.sample(logits_SV, uniform_S)


def choose_tokens(
    logits_SV: Tensor,
    temperature_S: Tensor,
    top_k_S: Tensor,
    top_p_S: Tensor,
    min_p_S: Tensor,
    seeds_S: Tensor,
    positions_S: Tensor,
) -> tuple[Tensor, Tensor]:
    """(ids int64 [S], the largest logit of each row float32 [S]): argmax, mask_truncated and sample of rows of all
    kinds in one, without waiting for the device.

    Logits of any floating dtype are divided by `temperature` in float32; a row of temperature 0 takes its maximum
    instead. The others draw with row_uniform(seeds, positions). A largest logit that is not finite is a broken row,
    whose id is some id of the vocabulary. top_k, seeds and positions int64, the others float32.
    """
    return bound.choose_tokens(logits_SV, temperature_S, top_k_S, top_p_S, min_p_S, seeds_S, positions_S)


def row_uniform(seeds_S: Tensor, positions_S: Tensor) -> Tensor:
    """Float64 [S] in [0, 1): a function of (seed, position) alone, both int64."""
    return bound.row_uniform(seeds_S, positions_S)


def gather_logprobs(logits_SV: Tensor, token_ids_S: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ids int64, log-probabilities float32, ranks int64), each [S, 1 + num_top].

    The given token first, then the `num_top` (at most V) likeliest, best first. A rank is 1 + the number of strictly
    likelier tokens.
    """
    return bound.gather_logprobs(logits_SV, token_ids_S, num_top)


def log_mass(logits_SV: Tensor) -> Tensor:
    """log(sum(exp(logits))) of each row, [S, 1]: what a logit is more than its log-probability."""
    return bound.log_mass(logits_SV)


def token_ranks(logits_SV: Tensor, token_ids_SM: Tensor) -> Tensor:
    """Int64 [S, M]: 1 + the number of strictly likelier tokens, of M tokens of each row."""
    return bound.token_ranks(logits_SV, token_ids_SM)
