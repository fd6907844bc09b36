"""Qwen 3 (dense): each head of query and key is normalised; a head size of its own; biases are optional."""

from __future__ import annotations

from octavo.layers.attention import SelfAttention
from octavo.layers.build import BuildContext
from octavo.layers.fields import ModelFields, from_hf
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.layers.stack import CausalLM, DecoderBlock
from octavo.models.llama import Llama
from octavo.models.qwen2 import qwen_windows


class Qwen3Fields(ModelFields):
    head_dim: int = from_hf("head_dim", default=128)
    attention_bias: bool = from_hf("attention_bias", default=False)
    windows: tuple[int | None, ...] = from_hf(read=qwen_windows)


class Qwen3Block(DecoderBlock):
    def __init__(self, f: Qwen3Fields, layer: int, build: BuildContext) -> None:
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
            window=f.windows[layer],
            norm=RMSNorm,
            norm_eps=f.norm_eps,
        )
        self.mlp_norm = RMSNorm(build, f.hidden_size, f.norm_eps)
        self.mlp = GatedMLP(build, f.hidden_size, f.intermediate_size, f.activation)


class Qwen3(CausalLM):
    fields, block, weights = Qwen3Fields, Qwen3Block, Llama.weights
