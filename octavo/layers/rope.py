"""Rotary position embedding: the frequencies of each scaling, and the table of cosines and sines that ops read.

Prefix caching and chunked prefill require that a token's rotation depend on its position alone. Two scalings were
defined otherwise: "dynamic" stretches its base as the sequence grows, and "longrope" changes its factors once a
sequence passes the original length, which would leave the keys already cached rotated by the old rule. Here both are
fixed when the model is built, by `max_model_len`: dynamic takes the base of a sequence of that length, longrope the
long factors if that length is above the original one. Up to the trained length dynamic is the unscaled model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from octavo.errors import UnsupportedModel


@dataclass(frozen=True)
class RopeFields:
    """What a checkpoint says of one rotary embedding. Names are those of `rope_parameters` in config.json."""

    theta: float = 10000.0
    rope_type: str = "default"
    partial_rotary_factor: float = 1.0
    max_position_embeddings: int = 0
    original_max_position_embeddings: int = 0
    factor: float | None = None
    attention_factor: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def rotary_dim(self, head_dim: int) -> int:
        return int(head_dim * self.partial_rotary_factor)


class RopeTable:
    """`cos_sin` [max_model_len, D] float32: cosines of D/2 frequencies, then sines, times the attention factor."""

    def __init__(self, fields: RopeFields, head_dim: int, max_model_len: int, device: torch.device) -> None:
        inverse, factor = inverse_frequencies(fields, head_dim, max_model_len)
        if device.type == "meta":  # a model without memory: only the shape counts
            self.cos_sin = torch.empty(max_model_len, 2 * len(inverse), device=device)
            return
        angles = torch.outer(torch.arange(max_model_len, dtype=torch.float32), inverse)
        self.cos_sin = torch.cat((angles.cos() * factor, angles.sin() * factor), -1).to(device)


def inverse_frequencies(fields: RopeFields, head_dim: int, max_model_len: int) -> tuple[torch.Tensor, float]:
    """([D/2] float32 radians per token, the factor of cosines and sines)."""
    try:
        scaling = SCALINGS[fields.rope_type]
    except KeyError:
        raise UnsupportedModel(f"rope_type {fields.rope_type!r} is unknown; known: {', '.join(SCALINGS)}") from None
    return scaling(fields, fields.rotary_dim(head_dim), max_model_len)


def _powers(theta: float, dim: int) -> torch.Tensor:
    """theta^(2i / dim) for i < dim / 2: the wavelengths over 2 pi, before any scaling (RoFormer, arXiv 2104.09864)."""
    return theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def _default(fields: RopeFields, dim: int, max_model_len: int) -> tuple[torch.Tensor, float]:
    return 1.0 / _powers(fields.theta, dim), 1.0


def _linear(fields: RopeFields, dim: int, max_model_len: int) -> tuple[torch.Tensor, float]:
    """Positions are divided by the factor (position interpolation, arXiv 2306.15595)."""
    return 1.0 / _powers(fields.theta, dim) / _factor(fields), 1.0


def _dynamic(fields: RopeFields, dim: int, max_model_len: int) -> tuple[torch.Tensor, float]:
    """NTK-aware scaling of the base, for a sequence of max_model_len."""
    factor = _factor(fields)
    stretch = max(max_model_len, fields.max_position_embeddings) / fields.max_position_embeddings
    theta = fields.theta * (factor * stretch - (factor - 1)) ** (dim / (dim - 2))
    return 1.0 / _powers(theta, dim), 1.0


def _llama3(fields: RopeFields, dim: int, max_model_len: int) -> tuple[torch.Tensor, float]:
    """Llama 3.1: long waves are stretched by the factor, short ones kept, those between interpolated."""
    original, low, high = fields.original_max_position_embeddings, fields.low_freq_factor, fields.high_freq_factor
    inverse = 1.0 / _powers(fields.theta, dim)
    turns = original * inverse / (2 * math.pi)  # of each frequency within the original length
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return inverse * (kept + (1 - kept) / _factor(fields)), 1.0


def _yarn(fields: RopeFields, dim: int, max_model_len: int) -> tuple[torch.Tensor, float]:
    """YaRN (arXiv 2309.00071): a ramp over dimensions from kept to interpolated, and a temperature on the scores."""
    original = fields.original_max_position_embeddings
    factor = fields.factor or fields.max_position_embeddings / original

    def dimension_of(turns: float) -> float:
        """The dimension whose frequency makes this many turns within the original length."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(fields.theta))

    low, high = dimension_of(fields.beta_fast), dimension_of(fields.beta_slow)
    if fields.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    interpolated = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    powers = _powers(fields.theta, dim)
    inverse = interpolated / (factor * powers) + (1 - interpolated) / powers

    def magnitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if fields.attention_factor is not None:
        return inverse, fields.attention_factor
    if fields.mscale and fields.mscale_all_dim:
        return inverse, magnitude(fields.mscale) / magnitude(fields.mscale_all_dim)
    return inverse, magnitude(1.0)


def _longrope(fields: RopeFields, dim: int, max_model_len: int) -> tuple[torch.Tensor, float]:
    """LongRoPE (arXiv 2402.13753): a factor for each frequency, from one list or the other."""
    original = fields.original_max_position_embeddings
    name = "long_factor" if max_model_len > original else "short_factor"
    factors = getattr(fields, name)
    if len(factors) != dim // 2:
        raise UnsupportedModel(f"longrope needs {dim // 2} values in {name}, got {len(factors)}")
    inverse = 1.0 / (torch.tensor(factors, dtype=torch.float32) * _powers(fields.theta, dim))
    if fields.attention_factor is not None:
        return inverse, fields.attention_factor
    factor = fields.factor or fields.max_position_embeddings / original
    return inverse, math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _factor(fields: RopeFields) -> float:
    if fields.factor is None:
        raise UnsupportedModel(f"rope_type {fields.rope_type!r} needs a factor in rope_parameters")
    return fields.factor


SCALINGS: dict[str, Callable[[RopeFields, int, int], tuple[torch.Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
