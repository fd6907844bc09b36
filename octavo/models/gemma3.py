"""Gemma 3, text: most layers see a window and have a rotary base of their own; norms before and after sublayers."""

from __future__ import annotations

import torch

from octavo.attention.backend import StepContext
from octavo.errors import UnsupportedModel
from octavo.layers.attention import SelfAttention
from octavo.layers.build import BuildContext
from octavo.layers.fields import Config, ModelFields, from_hf, rope_fields, windows_by_layer
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import OffsetRMSNorm
from octavo.layers.rope import RopeFields
from octavo.layers.stack import CausalLM, DecoderBlock
from octavo.models.llama import Llama


def windows(config: Config) -> tuple[int | None, ...]:
    """Every sixth layer sees all (`sliding_window_pattern`), unless `layer_types` says which."""
    if config.get("use_bidirectional_attention", False):
        raise UnsupportedModel(f"{config.architecture} with use_bidirectional_attention is not a causal model")
    pattern = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", 6))
    return windows_by_layer(
        config,
        lambda layer: "sliding_attention" if (layer + 1) % pattern else "full_attention",
        config.get("sliding_window", 4096),
    )


def local_rope(config: Config) -> RopeFields:
    """The older form of config.json scales only the global layers and names the local base by itself."""
    if isinstance(config.get("rope_parameters", {}).get("sliding_attention"), dict):
        return rope_fields(Config({**config.values, "rope_scaling": None}), "sliding_attention", theta=1e4)
    return RopeFields(
        theta=config.get("rope_local_base_freq", 1e4), max_position_embeddings=config.need("max_position_embeddings")
    )


class Gemma3Fields(ModelFields):
    head_dim: int = from_hf("head_dim", default=256)
    activation: str = from_hf("hidden_activation", default="gelu_pytorch_tanh")
    tie_word_embeddings: bool = from_hf("tie_word_embeddings", default=True)
    attention_bias: bool = from_hf("attention_bias", default=False)
    windows: tuple[int | None, ...] = from_hf(read=windows)
    rope: RopeFields = from_hf(read=lambda config: rope_fields(config, "full_attention", theta=1e6))
    local_rope: RopeFields = from_hf(read=local_rope)
    query_scalar: float = from_hf("query_pre_attn_scalar", default=256)
    soft_cap: float | None = from_hf("attn_logit_softcapping", default=None)
    logit_soft_cap: float | None = from_hf("final_logit_softcapping", default=None)
    embed_scale: float | None = from_hf(read=lambda config: config.need("hidden_size") ** 0.5)


class Gemma3Block(DecoderBlock):
    def __init__(self, f: Gemma3Fields, layer: int, build: BuildContext) -> None:
        super().__init__()
        window = f.windows[layer]
        self.attn = SelfAttention(
            build,
            f.hidden_size,
            f.num_heads,
            f.num_kv_heads,
            f.head_dim,
            f.rope if window is None else f.local_rope,
            qkv_bias=f.attention_bias,
            out_bias=f.attention_bias,
            window=window,
            scale=f.query_scalar**-0.5,
            soft_cap=f.soft_cap,
            norm=OffsetRMSNorm,
            norm_eps=f.norm_eps,
        )
        self.mlp = GatedMLP(build, f.hidden_size, f.intermediate_size, f.activation)
        self.attn_norm = OffsetRMSNorm(build, f.hidden_size, f.norm_eps)
        self.after_attn_norm = OffsetRMSNorm(build, f.hidden_size, f.norm_eps)
        self.mlp_norm = OffsetRMSNorm(build, f.hidden_size, f.norm_eps)
        self.after_mlp_norm = OffsetRMSNorm(build, f.hidden_size, f.norm_eps)

    def mix(
        self, hidden: torch.Tensor, residual: torch.Tensor | None, step: StepContext
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, residual = self.attn_norm.add(hidden, residual)
        return self.after_attn_norm(self.attn(hidden, step)), residual

    def feed(self, hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, residual = self.mlp_norm.add(hidden, residual)
        return self.after_mlp_norm(self.mlp(hidden)), residual


class Gemma3(CausalLM):
    fields, block, norm = Gemma3Fields, Gemma3Block, OffsetRMSNorm
    weights = Llama.weights.extend(
        rename={
            "post_attention_layernorm": "after_attn_norm",
            "pre_feedforward_layernorm": "mlp_norm",
            "post_feedforward_layernorm": "after_mlp_norm",
        }
    )
