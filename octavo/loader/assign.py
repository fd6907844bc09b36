"""From a checkpoint's tensors to a model's parameters. The only place that slices a parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import torch

from octavo.distributed.shard import Shard
from octavo.errors import WeightError
from octavo.loader.weight_map import WeightMap

NAMES_SHOWN = 8


class WeightSource(Protocol):
    """A tensor that can be read."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    def read(self) -> torch.Tensor: ...


class Form(Protocol):
    """What a parameter has as its attribute `form` whose bytes are not simply the tensor's values. Parts are those of
    its shard; None is all of them."""

    dtype: torch.dtype  # that values would have
    is_filled: bool  # it has all its values, from elsewhere than the checkpoint: tensors are not read

    def shape(self, part: int | None) -> tuple[int, ...]:
        """Of the tensor that fills a part."""

    def fill(self, part: int | None, source: WeightSource) -> None:
        """Reads the tensor and takes its values in."""


class ExpectedWeight(NamedTuple):
    """A tensor that a model wants, by its name in the checkpoint."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def expected_weights(parameters: Mapping[str, torch.nn.Parameter], names: WeightMap) -> Iterator[ExpectedWeight]:
    """Every tensor of a complete checkpoint, in the order of the parameters."""
    for parameter_name, parameter in parameters.items():
        sources = names.sources(parameter_name)
        for part, name in enumerate(sources):
            yield ExpectedWeight(name, *_expected(parameter, part if len(sources) > 1 else None))


def assign(
    parameters: Mapping[str, torch.nn.Parameter],
    names: WeightMap,
    weights: Iterable[WeightSource],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Copies each tensor to its place, cast to the parameter's dtype, or hands it to the parameter's form if it wants
    it.

    WeightError for a wrong shape or a second tensor for a place, at once; for missing and unexpected tensors, at the
    end. An unexpected tensor is an error because a model that leaves a trained bias or norm out answers wrongly.
    """
    missing = {expected.name for expected in expected_weights(parameters, names)}
    unexpected: list[str] = []
    for weight in weights:
        if names.ignores(weight.name):
            continue
        target = names.target(weight.name)
        parameter = parameters.get(target.parameter)
        if parameter is None:
            unexpected.append(weight.name)
            continue
        sources = names.sources(target.parameter)
        covers = sources if target.part is None else sources[target.part : target.part + 1]
        if not missing.issuperset(covers):
            raise WeightError(f"tensor {weight.name!r} goes to a place that another of the checkpoint has filled")
        shape, _ = _expected(parameter, target.part)
        _check_shape(weight.name, shape, weight.shape)
        form: Form | None = getattr(parameter, "form", None)
        if form is not None:
            if not form.is_filled:
                form.fill(target.part, weight)
        else:
            tensor = weight.read()
            _check_shape(weight.name, shape, tensor.shape)
            _place(parameter, target.part).copy_(tensor)
        missing.difference_update(covers)
        if progress is not None:
            progress(weight.nbytes)
    problems = []
    if missing:
        order = [expected.name for expected in expected_weights(parameters, names) if expected.name in missing]
        problems.append(f"{len(order)} missing: {_some(order)}")
    if unexpected:
        problems.append(f"{len(unexpected)} that the model has no place for: {_some(unexpected)}")
    if problems:
        raise WeightError(f"the checkpoint's tensors do not fit the model: {'; '.join(problems)}")


def _expected(parameter: torch.nn.Parameter, part: int | None) -> tuple[tuple[int, ...], torch.dtype]:
    form: Form | None = getattr(parameter, "form", None)
    if form is not None:
        return form.shape(part), form.dtype
    return tuple(_place(parameter, part).shape), parameter.dtype


def _place(parameter: torch.nn.Parameter, part: int | None) -> torch.Tensor:
    """The view of a parameter that one tensor fills."""
    if part is None:
        return parameter.data
    shard: Shard = parameter.shard  # type: ignore[attr-defined]
    return parameter.data.narrow(shard.fused_dim, sum(shard.parts[:part]), shard.parts[part])


def _check_shape(name: str, expected: Iterable[int], found: Iterable[int]) -> None:
    if tuple(expected) != tuple(found):
        raise WeightError(f"tensor {name!r} has shape {list(found)}, the model expects {list(expected)}")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"
