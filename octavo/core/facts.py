"""What is true of a machine and of a model, as plain records: filled above, handed to `config/resolve.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PlatformFacts:
    """What resolving options needs to know of the machine."""

    name: str  # "cpu", "cuda"
    dtypes: tuple[str, ...]  # that compute here at all
    fast_dtypes: tuple[str, ...]  # that the hardware computes in, rather than emulates; the preferred first
    cache_dtypes: tuple[str, ...]  # that keys and values can be kept in
    num_threads: int  # cores that this process may use for arithmetic
    is_asynchronous: bool  # the device works while the host plans
    shares_memory: bool  # the device's memory is the host's, which other programs use too
    default_options: Mapping[str, Any] = field(default_factory=dict)  # option name -> default on this platform
    has_block_kernels: bool = False  # that compute on a GGUF file's quantised blocks
    has_invariant_kernels: bool = False  # whose result for a row does not depend on the rows beside it


@dataclass(frozen=True)
class ModelFacts:
    """What resolving options needs to know of the model."""

    architecture: str
    vocab_size: int
    max_positions: int  # tokens of context that the positions were trained or scaled for
    max_positions_reason: str  # where that number comes from
    has_positions: bool = True  # else the context has no limit, and max_positions is only a default
    is_recurrent: bool = False  # some layers, or all, keep a state instead of keys and values
    dtype: str | None = None  # as stored; None where the file does not say, or stores quantised blocks
    unsafe_dtypes: tuple[str, ...] = ()  # overflow in this model's activations
