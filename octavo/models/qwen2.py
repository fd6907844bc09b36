"""Qwen 2 and 2.5: Llama with biases on query, key and value, and a sliding window on some layers."""

from __future__ import annotations

from octavo.layers.attention import SelfAttention
from octavo.layers.build import BuildContext
from octavo.layers.fields import Config, ModelFields, from_hf, windows_by_layer
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.layers.stack import CausalLM, DecoderBlock
from octavo.models.llama import Llama


def qwen_windows(config: Config) -> tuple[int | None, ...]:
    """With `use_sliding_window`, the layers from `max_window_layers` on have one, unless `layer_types` says which."""
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window", False) else None
    first = config.get("max_window_layers", 28)

    def default_type(layer: int) -> str:
        return "sliding_attention" if window is not None and layer >= first else "full_attention"

    return windows_by_layer(config, default_type, window)


class Qwen2Fields(ModelFields):
    windows: tuple[int | None, ...] = from_hf(read=qwen_windows)


class Qwen2Block(DecoderBlock):
    def __init__(self, f: Qwen2Fields, layer: int, build: BuildContext) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(build, f.hidden_size, f.norm_eps)
        self.attn = SelfAttention(
            build,
            f.hidden_size,
            f.num_heads,
            f.num_kv_heads,
            f.head_dim,
            f.rope,
            qkv_bias=True,
            window=f.windows[layer],
        )
        self.mlp_norm = RMSNorm(build, f.hidden_size, f.norm_eps)
        self.mlp = GatedMLP(build, f.hidden_size, f.intermediate_size, f.activation)


class Qwen2(CausalLM):
    fields, block, weights = Qwen2Fields, Qwen2Block, Llama.weights
