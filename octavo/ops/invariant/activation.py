"""Gated activations, in float32, of ops that give a value the same result wherever it lies. torch's own silu, gelu and
sigmoid do not: their vectors are another code than their leftovers."""

from __future__ import annotations

import math

import torch


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, -1)
    wide = gate.float()
    return wide.neg().exp_().add_(1.0).reciprocal_().mul_(wide).to(x.dtype).mul_(up)


def gelu_and_mul(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, -1)
    wide = gate.float()
    return wide.mul(math.sqrt(0.5)).erf_().add_(1.0).mul_(wide.mul(0.5)).to(x.dtype).mul_(up)


def gelu_tanh_and_mul(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, -1)
    wide = gate.float()
    inner = wide.square().mul_(wide).mul_(0.044715).add_(wide).mul_(math.sqrt(2 / math.pi))
    return inner.tanh_().add_(1.0).mul_(wide.mul(0.5)).to(x.dtype).mul_(up)
