"""Ops whose result for a row is bitwise the same whatever rows there are beside it: for batch_invariant, on a GPU.

Kernels whose tiles depend on the number of rows get those of TILE_ROWS. What is absent here is invariant as it is: it
computes elements one by one, or gives each row a program of its own.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from octavo.ops.invariant import logprobs as by_row
from octavo.ops.triton import activation, linear_tiles, logprobs, norm, rope, sampling, truncation

TILE_ROWS = 64


def choose_tokens(
    logits_SV: Tensor,
    temperature_S: Tensor,
    top_k_S: Tensor,
    top_p_S: Tensor,
    min_p_S: Tensor,
    seeds_S: Tensor,
    positions_S: Tensor,
) -> tuple[Tensor, Tensor]:
    """Of logits in float32, which a neighbour's wishes may or may not have made of them."""
    return sampling.choose_tokens(
        logits_SV.float(),
        temperature_S,
        top_k_S,
        top_p_S,
        min_p_S,
        seeds_S,
        positions_S,
        tile_rows=TILE_ROWS,
    )


def gather_logprobs(logits_SV: Tensor, token_ids_S: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    if num_top > logprobs.MOST_TOP:
        return by_row.gather_logprobs(logits_SV, token_ids_S, num_top)
    return logprobs.gather_logprobs(logits_SV.float(), token_ids_S, num_top, tile_rows=TILE_ROWS)


OPS = {
    "choose_tokens": choose_tokens,
    "gather_logprobs": gather_logprobs,
    "gelu_and_mul": partial(activation.gelu_and_mul, tile_rows=TILE_ROWS),
    "gelu_tanh_and_mul": partial(activation.gelu_tanh_and_mul, tile_rows=TILE_ROWS),
    "linear": linear_tiles.linear,
    "log_mass": by_row.log_mass,
    "mask_truncated": partial(truncation.mask_truncated, tile_rows=TILE_ROWS),
    "rms_norm": partial(norm.rms_norm, tile_rows=TILE_ROWS),
    "rope_and_write": partial(rope.rope_and_write, tile_rows=TILE_ROWS),
    "silu_and_mul": partial(activation.silu_and_mul, tile_rows=TILE_ROWS),
}
