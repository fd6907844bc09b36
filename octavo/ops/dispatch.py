"""The op table: which implementation of an op runs. `use(order)` decides it once; calls pay no lookup for it.

An implementation is a package with a dictionary OPS, op name -> function of the same signature as the public function
of that name in octavo/ops. "torch" has every op and is what the others are tested against.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from octavo.errors import ConfigurationError

log = logging.getLogger(__name__)

Function = Callable[..., Any]

SPECIFICATION = "torch"
_packages: dict[str, str] = {
    SPECIFICATION: "octavo.ops.torch",
    "triton": "octavo.ops.triton",
    "cpu": "octavo.ops.cpu",
    "invariant": "octavo.ops.invariant",
    "triton_invariant": "octavo.ops.triton.invariant",
}
_loaded: dict[str, Mapping[str, Function]] = {}
_absent: dict[str, str] = {}
_told: set[str] = set()  # of which the log has said that it is absent
_chosen: dict[str, str] = {}

bound = SimpleNamespace()  # the chosen function of each op, as an attribute; only `use` writes to it


def register(implementation: str, package: str) -> None:
    """Makes known an implementation, which may live outside the tree. It is imported when it is asked for."""
    if implementation == SPECIFICATION:
        raise ConfigurationError(f"op implementation {SPECIFICATION!r} is the specification and cannot be replaced")
    _packages[implementation] = package
    _loaded.pop(implementation, None)
    _absent.pop(implementation, None)
    _told.discard(implementation)


def load(implementation: str) -> Mapping[str, Function]:
    """The ops of one implementation; empty, with the reason in `absent()`, if it cannot be imported."""
    if implementation not in _packages:
        raise ConfigurationError(f"op implementation {implementation!r} is unknown; known: {', '.join(_packages)}")
    if implementation not in _loaded:
        try:
            _loaded[implementation] = importlib.import_module(_packages[implementation]).OPS
        except (ImportError, OSError) as error:  # OSError: a compiled library that does not load
            _loaded[implementation] = {}
            _absent[implementation] = f"{type(error).__name__}: {error}"
    return _loaded[implementation]


def use(order: tuple[str, ...]) -> dict[str, str]:
    """Binds every op to the first implementation in `order` that has it. Returns op name -> implementation."""
    chosen: dict[str, str] = {}
    for implementation in (*order, SPECIFICATION):
        load(implementation)
        if implementation in _absent and implementation not in _told:
            _told.add(implementation)
            log.warning("ops %r are not available: %s", implementation, _absent[implementation])
        for op, function in load(implementation).items():
            if op not in load(SPECIFICATION):
                raise ConfigurationError(f"op {op!r} of {implementation!r} has no specification in ops/torch")
            if op not in chosen:
                chosen[op] = implementation
                setattr(bound, op, function)
    _chosen.clear()
    _chosen.update(chosen)
    return dict(chosen)


def chosen() -> dict[str, str]:
    """Op name -> the implementation that runs."""
    return dict(_chosen)


def is_specialised(op: str) -> bool:
    """Does another implementation than the specification run?"""
    return _chosen[op] != SPECIFICATION


def present() -> dict[str, tuple[str, ...]]:
    """Op name -> the implementations that this machine has, the specification first."""
    for implementation in _packages:
        load(implementation)
    return {op: tuple(name for name in _packages if op in _loaded[name]) for op in load(SPECIFICATION)}


def absent() -> dict[str, str]:
    """Implementation -> why it could not be imported."""
    return dict(_absent)


def implementation_of(op: str, implementation: str) -> Function:
    """One function of the table, for tests and benchmarks."""
    try:
        return load(implementation)[op]
    except KeyError:
        raise ConfigurationError(f"op {op!r} has no implementation {implementation!r}") from None


use((SPECIFICATION,))
