"""What the construction of a model needs to know, passed down the constructors instead of globals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch

from octavo.attention.backend import AttentionBackend, AttentionQuery, GroupBackend
from octavo.attention.recurrent import RecurrentBackend
from octavo.attention.select import AttentionSelector
from octavo.cache.spec import CacheSpec
from octavo.distributed.shard import Shard, parameter
from octavo.layers.rope import RopeFields, RopeTable
from octavo.quantization.method import LinearMethod, UnquantizedLinear


class StatefulLayer(Protocol):
    """A layer that keeps something of each token."""

    cache_spec: CacheSpec

    @property
    def backend(self) -> GroupBackend: ...

    def bind(self, parts: Mapping[str, torch.Tensor], group: int) -> None:
        """Takes its views (part name -> [num_blocks, *shape]) and its group's index; no views to let go of them."""


@runtime_checkable
class Finalized(Protocol):
    """A layer that prepares something from its parameters."""

    def finalize(self) -> None:
        """Called once, when all parameters have their values."""


@dataclass(frozen=True)
class BuildContext:
    """One per model; `at(name)` is the same context inside a submodule. The dictionaries are shared by all of them.

    `linear_method` gives the method of the linear layer of a name (formats have exceptions by name), `attention` the
    backend for a query (and raises ConfigurationError where none can serve it). `max_model_len` fixes the rotary
    tables.
    """

    dtype: torch.dtype
    max_model_len: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    block_size: int = 16
    cache_dtype: str = "auto"  # of keys and values; "auto" is the model's dtype
    conv_state_dtype: str = "auto"  # of recurrent layers' last inputs; "auto" is the model's dtype
    ssm_state_dtype: str = "float32"  # of what recurrent layers sum over all tokens
    linear_method: Callable[[str], LinearMethod] = lambda name: UnquantizedLinear()
    attention: Callable[[AttentionQuery], AttentionBackend] = field(default_factory=AttentionSelector)
    recurrent: GroupBackend = field(default_factory=RecurrentBackend)
    capability: tuple[int, int] | None = None  # of the device, where it has one
    prefix: str = ""
    stateful: dict[str, StatefulLayer] = field(default_factory=dict)
    rope_tables: dict[tuple[RopeFields, int], RopeTable] = field(default_factory=dict)

    def at(self, name: str) -> BuildContext:
        return replace(self, prefix=f"{self.prefix}.{name}" if self.prefix else name)

    def parameter(self, shape: tuple[int, ...], shard: Shard, dtype: torch.dtype | None = None) -> torch.nn.Parameter:
        """In the model's dtype unless another is given."""
        return parameter(shape, dtype or self.dtype, self.device, shard)

    def declare_cache(self, layer: StatefulLayer) -> None:
        """Registers a layer's CacheSpec under the name of the module being built."""
        assert self.prefix not in self.stateful, f"two stateful layers called {self.prefix}"
        self.stateful[self.prefix] = layer

    def rope(self, fields: RopeFields, head_dim: int) -> RopeTable:
        """The rotary table of these fields, one for all layers that share them."""
        key = (fields, head_dim)
        if key not in self.rope_tables:
            self.rope_tables[key] = RopeTable(fields, head_dim, self.max_model_len, self.device)
        return self.rope_tables[key]

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def cache_dtype_name(self) -> str:
        return self.dtype_name if self.cache_dtype == "auto" else self.cache_dtype

    @property
    def conv_state_dtype_name(self) -> str:
        return self.dtype_name if self.conv_state_dtype == "auto" else self.conv_state_dtype
