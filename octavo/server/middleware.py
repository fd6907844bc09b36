"""Layers of the operator's own round the application (--middleware)."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from importlib import import_module
from typing import Any, cast

from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from octavo.errors import ConfigurationError


def load_middleware(paths: Iterable[str]) -> list[Middleware]:
    """Of each import path, such as package.module.Name: an ASGI middleware class, made with the application inside it,
    or a function `async (request, call_next) -> response`. Raises ConfigurationError."""
    return [_load(path) for path in paths]


def _load(path: str) -> Middleware:
    module, _, name = path.rpartition(".")
    if not module or not name:
        raise _error(path, "it must be an import path such as package.module.Name")
    try:
        found: Any = getattr(import_module(module), name)
    except Exception as error:  # whatever the module does when it is imported
        raise _error(path, f"{type(error).__name__}: {error}") from None
    if inspect.isclass(found):
        return Middleware(cast(Any, found))
    if inspect.iscoroutinefunction(found):
        return Middleware(BaseHTTPMiddleware, dispatch=found)
    raise _error(path, f"it is neither a class nor an async function, but {type(found).__name__}")


def _error(path: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"middleware: {path} cannot be used: {why}")
