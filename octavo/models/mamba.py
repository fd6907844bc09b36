"""Mamba: blocks of one Mamba-1 mixer, no attention, no MLP, no positions."""

from __future__ import annotations

import math

import torch

from octavo.attention.backend import StepContext
from octavo.errors import UnsupportedModel
from octavo.layers.build import BuildContext
from octavo.layers.fields import Config, StackFields, from_hf
from octavo.layers.mamba import Mamba1Mixer
from octavo.layers.norm import RMSNorm, WideRMSNorm
from octavo.layers.stack import CausalLM, DecoderBlock
from octavo.loader.weight_map import WeightMap


def inner_size(config: Config) -> int:
    return config.count("intermediate_size", int(config.get("expand", 2) * config.need("hidden_size")))


def time_step_rank(config: Config) -> int:
    automatic = math.ceil(config.need("hidden_size") / 16)
    return automatic if config.get("time_step_rank") == "auto" else config.count("time_step_rank", automatic)


def silu_only(config: Config) -> str:
    name = config.get("hidden_act", "silu")
    if name not in ("silu", "swish"):
        raise UnsupportedModel(f"{config.architecture}: activation {name!r} of a mixer is not silu")
    return name


class PureMambaFields(StackFields):
    """What Mamba and Mamba-2 share."""

    norm_eps: float = from_hf("layer_norm_epsilon", default=1e-5)
    activation: str = from_hf(read=silu_only)
    wide_residual: bool = from_hf("residual_in_fp32", default=True)
    kernel_size: int = from_hf("conv_kernel", default=4)
    bias: bool = from_hf("use_bias", default=False)
    conv_bias: bool = from_hf("use_conv_bias", default=True)


class MambaFields(PureMambaFields):
    tie_word_embeddings: bool = from_hf("tie_word_embeddings", default=True)
    inner_size: int = from_hf(read=inner_size)
    state_size: int = from_hf("state_size", default=16)
    time_step_rank: int = from_hf(read=time_step_rank)


class PureMambaBlock(DecoderBlock):
    """A norm and a mixer."""

    mixer: torch.nn.Module

    def __init__(self, f: PureMambaFields, build: BuildContext) -> None:
        super().__init__()
        self.norm = (WideRMSNorm if f.wide_residual else RMSNorm)(build, f.hidden_size, f.norm_eps)

    def forward(
        self, hidden: torch.Tensor, residual: torch.Tensor | None, step: StepContext
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, residual = self.norm.add(hidden, residual)
        return self.mixer(hidden, step), residual


class MambaBlock(PureMambaBlock):
    def __init__(self, f: MambaFields, layer: int, build: BuildContext) -> None:
        super().__init__(f, build)
        self.mixer = Mamba1Mixer(
            build,
            f.hidden_size,
            f.inner_size,
            f.state_size,
            f.time_step_rank,
            f.kernel_size,
            bias=f.bias,
            conv_bias=f.conv_bias,
        )


class Mamba(CausalLM):
    fields, block, norm = MambaFields, MambaBlock, WideRMSNorm
    weights = WeightMap(
        rename={
            "backbone": "model",
            "backbone.embedding": "model.embed",  # as the first checkpoints call it
            "backbone.embeddings": "model.embed",
            "backbone.norm_f": "model.norm",
            "lm_head": "head",
        }
    )
