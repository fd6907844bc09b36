"""Bamba: blocks of Mamba-2 and MLP, and among them some of attention and MLP."""

from __future__ import annotations

import torch

from octavo.attention.backend import StepContext
from octavo.layers.build import BuildContext
from octavo.layers.fields import Config, from_hf, rope_fields
from octavo.layers.mamba import Mamba2Mixer, Mamba2Shape
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.layers.rope import RopeFields
from octavo.layers.stack import CausalLM, DecoderBlock
from octavo.models.llama import Llama, LlamaBlock, LlamaFields
from octavo.models.mamba import silu_only
from octavo.models.mamba2 import read_shape

KEYS: dict[str, tuple[str, int]] = {  # as in mamba2.py
    "num_heads": ("mamba_n_heads", 128),
    "head_dim": ("mamba_d_head", 64),
    "state_size": ("mamba_d_state", 256),
    "num_groups": ("mamba_n_groups", 1),
    "kernel_size": ("mamba_d_conv", 4),
}


def shape(config: Config) -> Mamba2Shape:
    if config.get("mamba_d_head", "auto") == "auto":
        inner_size = config.get("mamba_expand", 2) * config.need("hidden_size")
        config = Config({**config.values, "mamba_d_head": inner_size // config.count("mamba_n_heads", 128)})
    return read_shape(config, KEYS, "mamba_expand")


def attention_layers(config: Config) -> frozenset[int]:
    layers, num_layers = config.get("attn_layer_indices", []), config.need("num_hidden_layers")
    if not isinstance(layers, list) or not all(layer in range(num_layers) for layer in layers):
        raise config.wrong("attn_layer_indices", layers, f"a list of layers below num_hidden_layers = {num_layers}")
    return frozenset(layers)


def half_rope(config: Config) -> RopeFields:
    """Half of each head is rotated; not every checkpoint says so."""
    return rope_fields(Config({"partial_rotary_factor": 0.5, **config.values}))


class BambaFields(LlamaFields):
    norm_eps: float = from_hf("rms_norm_eps", default=1e-5)
    activation: str = from_hf(read=silu_only)
    rope: RopeFields = from_hf(read=half_rope)
    attention_layers: frozenset[int] = from_hf(read=attention_layers)
    shape: Mamba2Shape = from_hf(read=shape)
    mamba_bias: bool = from_hf("mamba_proj_bias", default=False)
    conv_bias: bool = from_hf("mamba_conv_bias", default=True)


class BambaMambaBlock(DecoderBlock):
    def __init__(self, f: BambaFields, layer: int, build: BuildContext) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(build, f.hidden_size, f.norm_eps)
        self.mixer = Mamba2Mixer(build, f.hidden_size, f.shape, f.norm_eps, bias=f.mamba_bias, conv_bias=f.conv_bias)
        self.mlp_norm = RMSNorm(build, f.hidden_size, f.norm_eps)
        self.mlp = GatedMLP(build, f.hidden_size, f.intermediate_size, f.activation, f.mlp_bias)

    def mix(
        self, hidden: torch.Tensor, residual: torch.Tensor | None, step: StepContext
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, residual = self.attn_norm.add(hidden, residual)
        return self.mixer(hidden, step), residual


def block_of(f: BambaFields, layer: int, build: BuildContext) -> DecoderBlock:
    return (LlamaBlock if layer in f.attention_layers else BambaMambaBlock)(f, layer, build)


class Bamba(CausalLM):
    fields, block = BambaFields, block_of
    weights = Llama.weights.extend(
        rename={
            "model.final_layernorm": "model.norm",
            "mamba": "mixer",
            "pre_ff_layernorm": "mlp_norm",
            "feed_forward": "mlp",
        }
    )
