"""Mixers that keep a state of fixed size instead of keys and values.

T tokens, D inner channels, N state size; Mamba-2 has H heads of P channels, and G groups of B and C. A layer's page has
two parts: the convolution's last inputs, and the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from octavo.attention.backend import StepContext
from octavo.cache.retention import KeepLatest
from octavo.cache.spec import CacheSpec, PageLayout, PagePart
from octavo.distributed.shard import Shard
from octavo.errors import UnsupportedModel
from octavo.layers.build import BuildContext
from octavo.layers.linear import ColumnLinear, FusedLinear, RowLinear
from octavo.layers.norm import GatedRMSNorm
from octavo.ops.ssm import causal_conv1d, selective_scan, ssd
from octavo.ops.state_rows import StateRows


class CausalConv1d(nn.Module):
    """Each channel's convolution with its last `kernel_size` inputs, then silu. `channels` are those of the parts that
    are convolved together."""

    def __init__(self, build: BuildContext, channels: tuple[int, ...], kernel_size: int, bias: bool) -> None:
        super().__init__()
        shard = Shard(channels, 0)
        self.weight = build.parameter((sum(channels), 1, kernel_size), shard)
        self.bias = build.parameter((sum(channels),), shard) if bias else None

    def forward(self, x: torch.Tensor, states: torch.Tensor, rows: StateRows) -> torch.Tensor:
        return causal_conv1d(x, self.weight.squeeze(1), self.bias, states, rows)[0]


class MambaMixer(nn.Module):
    """What both mixers share: a page of state, `conv_states` [B, channels, kernel_size - 1] and `ssm_states`
    [B, *state_shape], and the matrix A, of which checkpoints have the logarithm.

    A's logarithm, D and the bias of the time step are few and act at every token: they are kept in float32.
    """

    A_log: nn.Parameter

    def declare_state(self, build: BuildContext, channels: int, kernel_size: int, state_shape: tuple[int, ...]) -> None:
        if kernel_size < 2:
            raise UnsupportedModel(f"{build.prefix}: a convolution of {kernel_size} inputs: it needs 2 or more")
        parts = (
            PagePart("conv", (channels, kernel_size - 1), build.conv_state_dtype_name),
            PagePart("ssm", state_shape, build.ssm_state_dtype),
        )
        self.cache_spec = CacheSpec(PageLayout(build.block_size, parts), KeepLatest())
        self.backend = build.recurrent
        build.declare_cache(self)

    def bind(self, parts: Mapping[str, torch.Tensor], group: int) -> None:
        nothing = torch.empty(0)
        self.conv_states, self.ssm_states = parts.get("conv", nothing), parts.get("ssm", nothing)
        self.group = group

    def finalize(self) -> None:
        self.A = -torch.exp(self.A_log)


class Mamba1Mixer(MambaMixer):
    """Mamba-1 (arXiv 2312.00752). The checkpoint's names are kept inside it."""

    def __init__(
        self,
        build: BuildContext,
        hidden_size: int,
        inner_size: int,
        state_size: int,
        time_step_rank: int,
        kernel_size: int,
        *,
        bias: bool = False,
        conv_bias: bool = True,
        name: str = "mixer",
    ) -> None:
        super().__init__()
        build = build.at(name)
        self.inner_size = inner_size
        self.in_proj = FusedLinear(build.at("in_proj"), hidden_size, (inner_size, inner_size), bias)
        self.conv1d = CausalConv1d(build.at("conv1d"), (inner_size,), kernel_size, conv_bias)
        self.selection_sizes = (time_step_rank, state_size, state_size)
        self.x_proj = RowLinear(build.at("x_proj"), inner_size, self.selection_sizes)
        self.dt_proj = ColumnLinear(build.at("dt_proj"), time_step_rank, inner_size, True)
        shard = Shard((inner_size,), 0)
        self.A_log = build.parameter((inner_size, state_size), shard, torch.float32)
        self.D = build.parameter((inner_size,), shard, torch.float32)
        self.out_proj = RowLinear(build.at("out_proj"), inner_size, hidden_size, bias)
        self.declare_state(build, inner_size, kernel_size, (inner_size, state_size))

    def forward(self, hidden: torch.Tensor, step: StepContext) -> torch.Tensor:
        rows: StateRows = step.groups[self.group].plan
        x, gate = self.in_proj(hidden).split(self.inner_size, -1)
        x = self.conv1d(x, self.conv_states, rows)
        dt, B, C = self.x_proj(x).split(self.selection_sizes, -1)
        y, _ = selective_scan(x, self.dt_proj(dt), self.A, B, C, self.D, gate, self.ssm_states, rows)
        return self.out_proj(y)


@dataclass(frozen=True)
class Mamba2Shape:
    """The sizes of a Mamba-2 mixer. Its inner channels are heads times head size."""

    num_heads: int
    head_dim: int
    state_size: int
    num_groups: int
    kernel_size: int
    time_step_limit: tuple[float, float] = (0.0, float("inf"))

    @property
    def inner_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def conv_parts(self) -> tuple[int, int, int]:
        """x, B and C, which are convolved together."""
        return (self.inner_size, self.num_groups * self.state_size, self.num_groups * self.state_size)


class Mamba2Mixer(MambaMixer):
    """Mamba-2 (arXiv 2405.21060). The checkpoint's names are kept inside it."""

    def __init__(
        self,
        build: BuildContext,
        hidden_size: int,
        shape: Mamba2Shape,
        norm_eps: float,
        *,
        bias: bool = False,
        conv_bias: bool = True,
        norm_before_gate: bool = False,
        name: str = "mixer",
    ) -> None:
        super().__init__()
        build = build.at(name)
        self.shape, parts, inner_size = shape, shape.conv_parts, shape.inner_size
        self.in_proj = FusedLinear(build.at("in_proj"), hidden_size, (inner_size, *parts, shape.num_heads), bias)
        self.sizes = (inner_size, sum(parts), shape.num_heads)
        self.conv1d = CausalConv1d(build.at("conv1d"), parts, shape.kernel_size, conv_bias)
        shard = Shard((shape.num_heads,), 0)
        self.A_log, self.D, self.dt_bias = (build.parameter((shape.num_heads,), shard, torch.float32) for _ in range(3))
        self.norm = GatedRMSNorm(build, inner_size, norm_eps, shape.num_groups, norm_before_gate)
        self.out_proj = RowLinear(build.at("out_proj"), inner_size, hidden_size, bias)
        state_shape = (shape.num_heads, shape.head_dim, shape.state_size)
        self.declare_state(build, sum(parts), shape.kernel_size, state_shape)

    def forward(self, hidden: torch.Tensor, step: StepContext) -> torch.Tensor:
        rows: StateRows = step.groups[self.group].plan
        shape = self.shape
        gate, x, dt = self.in_proj(hidden).split(self.sizes, -1)
        x, B, C = self.conv1d(x, self.conv_states, rows).split(shape.conv_parts, -1)
        y, _ = ssd(
            x.unflatten(-1, (shape.num_heads, shape.head_dim)),
            dt,
            self.dt_bias,
            shape.time_step_limit,
            self.A,
            B.unflatten(-1, (shape.num_groups, shape.state_size)),
            C.unflatten(-1, (shape.num_groups, shape.state_size)),
            self.D,
            self.ssm_states,
            rows,
        )
        return self.out_proj(self.norm(y.flatten(1), gate))
