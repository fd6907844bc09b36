"""Mistral: Llama with an optional sliding window over all layers."""

from __future__ import annotations

from octavo.layers.attention import SelfAttention
from octavo.layers.build import BuildContext
from octavo.layers.fields import ModelFields, from_hf
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.layers.stack import CausalLM, DecoderBlock
from octavo.models.llama import Llama


class MistralFields(ModelFields):
    # transformers takes 4096 where the key is absent, and no window where it is null
    window: int | None = from_hf(
        "sliding_window", default=lambda config: None if "sliding_window" in config.values else 4096
    )


class MistralBlock(DecoderBlock):
    def __init__(self, f: MistralFields, layer: int, build: BuildContext) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(build, f.hidden_size, f.norm_eps)
        self.attn = SelfAttention(
            build, f.hidden_size, f.num_heads, f.num_kv_heads, f.head_dim, f.rope, window=f.window
        )
        self.mlp_norm = RMSNorm(build, f.hidden_size, f.norm_eps)
        self.mlp = GatedMLP(build, f.hidden_size, f.intermediate_size, f.activation)


class Mistral(CausalLM):
    fields, block, weights = MistralFields, MistralBlock, Llama.weights
