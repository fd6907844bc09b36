"""Names of parsers to their classes. A class is imported when it is asked for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

from octavo.errors import ConfigurationError


class ParserRegistry:
    """Parsers of one kind ("tool parser", "reasoning parser") by name, each known as "module:Class"."""

    def __init__(self, kind: str, option: str, known: Mapping[str, str], aliases: Mapping[str, str]) -> None:
        self._kind, self._option = kind, option
        self._known = dict(known)
        self._aliases = dict(aliases)

    @property
    def names(self) -> list[str]:
        """Every name that `find` knows, aliases included."""
        return sorted({*self._known, *self._aliases})

    def register(self, name: str, target: str) -> None:
        """Adds a parser as "module:Class", or puts another class in the place of a known one."""
        module, _, attribute = target.partition(":")
        if not module or not attribute:
            raise ConfigurationError(f'a {self._kind} is registered as "module:Class", got {target!r}')
        self._aliases.pop(name, None)
        self._known[name] = target

    def find(self, name: str) -> type[Any]:
        """The class of a name, or of a "module:Class" that is not registered."""
        target = self._known.get(self._aliases.get(name, name), name)
        module, colon, attribute = target.partition(":")
        if not (colon and module and attribute):
            near = difflib.get_close_matches(name, self.names, 3, 0.5)
            hint = f"the nearest known are {', '.join(near)}" if near else f"known are {', '.join(self.names)}"
            raise ConfigurationError(f'{self._option} {name!r} is unknown; {hint}, or give your own as "module:Class"')
        try:
            found = resolve_name(target)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigurationError(f"{self._option} {name!r} cannot be loaded: {error}") from error
        if not isinstance(found, type):
            raise ConfigurationError(f"{self._option} {name!r} must name a class, got {found!r}")
        return found
