"""Logits processors of the whole engine: the interface, which is vLLM's, and how classes are found by name.

Imports no torch: a front end has the classes too, to check requests' arguments.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from octavo.core.params import SamplingParams
from octavo.errors import ConfigurationError, InvalidRequest

if TYPE_CHECKING:
    import torch

    from octavo.config.engine_config import EngineConfig


class MoveDirectionality(enum.Enum):
    UNIDIRECTIONAL = enum.auto()  # the first index becomes the second; what was there is gone
    SWAP = enum.auto()


RemovedRequest = int  # index
AddedRequest = tuple[int, SamplingParams, list[int] | None, list[int]]  # index, parameters, prompt, output
MovedRequest = tuple[int, int, MoveDirectionality]


@dataclass(frozen=True)
class BatchUpdate:
    """How the batch differs from that of the step before: index i is row i of the logits that `apply` gets next.

    To be followed in this order: removed, added, moved. What is added or moved may replace what has its index; a
    replaced index is not among the removed ones. The output of an added request is the list that grows with it, so a
    processor may keep it. A request that waits, or was preempted, is removed, and added again with what it has.
    """

    batch_size: int
    removed: Sequence[RemovedRequest]
    added: Sequence[AddedRequest]
    moved: Sequence[MovedRequest]


class LogitsProcessor(ABC):
    """Changes the logits of every batch. Made once; if one raises, all are made anew."""

    @classmethod  # noqa: B027
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises ValueError for a request that this processor cannot serve (mostly for its `extra_args`)."""

    @abstractmethod
    def __init__(self, config: EngineConfig, device: torch.device, is_pin_memory: bool) -> None: ...

    @abstractmethod
    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Float32 [batch_size, vocabulary], changed in place or a new tensor of that shape."""

    @abstractmethod
    def is_argmax_invariant(self) -> bool:
        """True if the likeliest token stays so: then greedy rows are left alone, and the others are divided by their
        temperature first. Asked once."""

    @abstractmethod
    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Before each `apply`; None if the batch is that of the step before."""


def load(path: str, option: str) -> Any:
    """What "module:name" names. Raises ConfigurationError."""
    try:
        return resolve_name(path)
    except Exception as error:  # a module may raise anything
        raise ConfigurationError(f"{option}: {path} cannot be loaded: {type(error).__name__}: {error}") from error


def load_classes(paths: Iterable[str]) -> list[type[LogitsProcessor]]:
    """Raises ConfigurationError."""
    classes = []
    for path in paths:
        found = load(path, "logits_processors")
        if not isinstance(found, type) or not issubclass(found, LogitsProcessor):
            raise ConfigurationError(f"logits_processors: {path} must be a subclass of octavo.LogitsProcessor")
        classes.append(found)
    return classes


def path_of(processor: Any) -> Any:
    """A class as "module:Class"; what is no class is left to the option's own check. Raises ConfigurationError."""
    if not isinstance(processor, type):
        return processor
    path = f"{processor.__module__}:{processor.__qualname__}"
    if "<locals>" in path or load(path, "logits_processors") is not processor:
        raise ConfigurationError(f"logits_processors: {path} must be defined at the top of a module, to be found there")
    return path


def validate(classes: Iterable[type[LogitsProcessor]], params: SamplingParams) -> None:
    """Raises InvalidRequest for a request that one of them refuses."""
    for cls in classes:
        try:
            cls.validate_params(params)
        except InvalidRequest:
            raise
        except Exception as error:
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            raise InvalidRequest(f"{cls.__name__} refuses the request: {kind}{error}", "extra_args") from error
