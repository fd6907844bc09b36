"""Self-attention over the paged cache. T tokens, N query heads, K key/value heads, H head size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from octavo.attention.backend import AttentionCall, AttentionQuery, StepContext
from octavo.cache.retention import KeepAll, KeepWindow
from octavo.cache.spec import CacheSpec, kv_layout
from octavo.layers.build import BuildContext
from octavo.layers.linear import FusedLinear, RowLinear
from octavo.layers.norm import RMSNorm
from octavo.layers.rope import RopeFields
from octavo.ops.cache import write_kv
from octavo.ops.rope import rope_and_write


class SelfAttention(nn.Module):
    """Causal grouped-query attention with rotary positions.

    `window` counts the tokens a query sees, itself included. `norm` normalises each head of q and k, with `norm_eps`.
    `rope=None` makes a layer without positions. `scale` is head_dim^-0.5 unless given.
    """

    def __init__(
        self,
        build: BuildContext,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rope: RopeFields | None,
        *,
        qkv_bias: bool = False,
        out_bias: bool = False,
        window: int | None = None,
        scale: float | None = None,
        soft_cap: float | None = None,
        norm: type[RMSNorm] | None = None,
        norm_eps: float = 1e-6,
        name: str = "attn",
    ) -> None:
        super().__init__()
        build = build.at(name)
        self.head_dim, self.sizes = head_dim, (num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim)
        self.qkv = FusedLinear(build.at("qkv"), hidden_size, self.sizes, qkv_bias)
        self.out = RowLinear(build.at("out"), num_heads * head_dim, hidden_size, out_bias)
        self.q_norm = norm(build, head_dim, norm_eps) if norm else None
        self.k_norm = norm(build, head_dim, norm_eps) if norm else None
        self.norm_constants = (norm_eps, norm.weight_offset if norm else 0.0)
        self.cos_sin = build.rope(rope, head_dim).cos_sin if rope else None
        self.call = AttentionCall(
            head_dim**-0.5 if scale is None else scale, num_heads, num_kv_heads, head_dim, window, soft_cap
        )
        self.backend = build.attention(
            AttentionQuery(
                head_dim=head_dim,
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                block_size=build.block_size,
                dtype=build.dtype_name,
                cache_dtype=build.cache_dtype_name,
                window=window,
                soft_cap=soft_cap,
                capability=build.capability,
            )
        )
        self.cache_spec = CacheSpec(
            kv_layout(build.block_size, num_kv_heads, head_dim, build.cache_dtype_name),
            KeepAll() if window is None else KeepWindow(window),
        )
        build.declare_cache(self)

    def bind(self, parts: Mapping[str, torch.Tensor], group: int) -> None:
        self.cache, self.group = parts["kv"] if parts else torch.empty(0), group

    def forward(self, hidden: torch.Tensor, step: StepContext) -> torch.Tensor:
        """[T, hidden_size]; where the step has `ends`, of their tokens alone: [R, hidden_size]."""
        q, k, v = self.project(hidden)
        slots = step.groups[self.group].slots
        if self.cos_sin is None:
            q = q.contiguous() if self.q_norm is None else self.q_norm(q)
            write_kv(k if self.k_norm is None else self.k_norm(k), v, self.cache, slots)
        else:
            q = rope_and_write(
                q,
                k,
                v,
                step.positions,
                self.cos_sin,
                self.cache,
                slots,
                None if self.q_norm is None else self.q_norm.weight,
                None if self.k_norm is None else self.k_norm.weight,
                *self.norm_constants,
            )
        if step.ends is not None:
            q, step = q[step.last_tokens], step.ends
            step.groups[self.group].plan = self.backend.plan(step, self.group)
        out = self.backend.forward(q, self.cache, step, self.group, self.call)
        return self.out(out.flatten(1))

    def project(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q [T, N, H], k and v [T, K, H], as views of one product. To override where q or k is treated as a whole."""
        q, k, v = self.qkv(hidden).split(self.sizes, -1)
        return (
            q.unflatten(1, (-1, self.head_dim)),
            k.unflatten(1, (-1, self.head_dim)),
            v.unflatten(1, (-1, self.head_dim)),
        )
