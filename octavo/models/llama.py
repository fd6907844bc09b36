"""Llama 1 to 3, and the many models of the same form."""

from __future__ import annotations

from octavo.layers.attention import SelfAttention
from octavo.layers.build import BuildContext
from octavo.layers.fields import ModelFields, from_hf
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.layers.stack import CausalLM, DecoderBlock
from octavo.loader.weight_map import WeightMap


class LlamaFields(ModelFields):
    attention_bias: bool = from_hf("attention_bias", default=False)
    mlp_bias: bool = from_hf("mlp_bias", default=False)


class LlamaBlock(DecoderBlock):
    def __init__(self, f: LlamaFields, layer: int, build: BuildContext) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(build, f.hidden_size, f.norm_eps)
        self.attn = SelfAttention(
            build,
            f.hidden_size,
            f.num_heads,
            f.num_kv_heads,
            f.head_dim,
            f.rope,
            qkv_bias=f.attention_bias,
            out_bias=f.attention_bias,
        )
        self.mlp_norm = RMSNorm(build, f.hidden_size, f.norm_eps)
        self.mlp = GatedMLP(build, f.hidden_size, f.intermediate_size, f.activation, f.mlp_bias)


class Llama(CausalLM):
    fields, block = LlamaFields, LlamaBlock
    weights = WeightMap(
        rename={
            "embed_tokens": "embed",
            "lm_head": "head",
            "self_attn": "attn",
            "o_proj": "out",
            "down_proj": "down",
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "mlp_norm",
        },
        fuse={"attn.qkv": ("q_proj", "k_proj", "v_proj"), "mlp.gate_up": ("gate_proj", "up_proj")},
    )
