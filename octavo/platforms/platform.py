"""What octavo knows of a device, as a record. One file a platform makes one; nobody subclasses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from octavo.core.facts import PlatformFacts
from octavo.errors import ConfigurationError


@dataclass(frozen=True)
class Kernels:
    """A choice of kernels."""

    attention_order: Callable[[Any], tuple[str, ...]]  # AttentionQuery -> names of backends, best first
    op_order: tuple[str, ...]  # implementations of ops, best first; "torch" is always last


@dataclass(frozen=True)
class Platform:
    """One device, or one kind of devices. Imports no torch: `device` and `dtypes` are torch's names as strings."""

    name: str  # "cpu"; also the name of its rows in ops/dispatch.py
    description: str  # for people: the processor's own name
    device: str  # for torch.device
    dtypes: tuple[str, ...]  # that compute here at all
    fast_dtypes: tuple[str, ...]  # that the hardware computes in; the preferred first
    cache_dtypes: tuple[str, ...]  # that keys and values can be kept in
    capability: tuple[int, int] | None  # compute capability, where the device has one
    instruction_sets: tuple[str, ...]  # that octavo's kernels can use; empty where the question makes no sense
    attention_order: Callable[[Any], tuple[str, ...]]  # AttentionQuery -> names of backends, best first
    op_order: tuple[str, ...]  # implementations of ops, best first; "torch" is always last
    graphs: Literal["eager", "captured", "recorded"]
    collectives: str  # torch.distributed's name
    pinned_memory: bool
    streams: bool  # the device works beside the host
    shares_memory: bool  # with the host, and so with other programs
    num_threads: int  # cores this process may use for arithmetic
    memory_info: Callable[[], tuple[int, int]]  # () -> (free, total) bytes that this process may use
    worker: str  # "module:Class"
    before_torch: str | None = None  # "module:function": begins what takes long and can be done beside importing torch
    default_options: Mapping[str, Any] = field(default_factory=dict)  # option name -> default here
    limits: Mapping[str, int] = field(default_factory=dict)  # what hardware bounds, by name
    cache_by_layer: bool = False  # a layer's pages lie together where the model has one kind of block
    has_block_kernels: bool = False  # that compute on a GGUF file's quantised blocks
    cpus: tuple[int, ...] = ()  # logical CPUs that threads are pinned to, one for each of num_threads
    invariant: Kernels | None = None  # those whose result for a row does not depend on the rows beside it

    def kernels(self, batch_invariant: bool) -> Kernels:
        """Raises ConfigurationError where the invariant ones are asked for and there are none."""
        if not batch_invariant:
            return Kernels(self.attention_order, self.op_order)
        if self.invariant is None:
            raise ConfigurationError(f"batch_invariant: there are no such kernels for {self.name}")
        return self.invariant

    def facts(self) -> PlatformFacts:
        """What `config/resolve.py` needs of it."""
        return PlatformFacts(
            name=self.name,
            dtypes=self.dtypes,
            fast_dtypes=self.fast_dtypes,
            cache_dtypes=self.cache_dtypes,
            num_threads=self.num_threads,
            is_asynchronous=self.streams,
            shares_memory=self.shares_memory,
            default_options=self.default_options,
            has_block_kernels=self.has_block_kernels,
            has_invariant_kernels=self.invariant is not None,
        )
