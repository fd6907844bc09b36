"""Finds the platform to run on: those of other packages first (entry points `octavo.platforms`), then octavo's own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import entry_points

from octavo.errors import ConfigurationError
from octavo.platforms import cpu, cuda
from octavo.platforms.platform import Platform

# Each returns its platform, or None where the machine has no such device. The CPU is everywhere, so it comes last.
Probe = Callable[[], Platform | None]
BUILT_IN: dict[str, Probe] = {"cuda": lambda: _guarded("cuda", lambda: cuda.platform)(), "cpu": cpu.platform}

_log = logging.getLogger(__name__)


def detect(name: str | None = None) -> Platform:
    """The first platform present, or the one called `name`. Raises ConfigurationError if there is none."""
    probes = {**_outside(), **BUILT_IN}
    if name is not None and name not in probes:
        raise ConfigurationError(f"there is no platform {name}; known are {', '.join(probes)}")
    for probed, probe in probes.items():
        if name is not None and probed != name:
            continue
        platform = probe()
        if platform is not None:
            return platform
    raise ConfigurationError(f"this machine has no {name} device")


def _outside() -> dict[str, Probe]:
    """Probes of other packages. One that cannot be loaded, or raises, is named in the log and passed over."""
    return {entry.name: _guarded(entry.name, entry.load) for entry in entry_points(group="octavo.platforms")}


def _guarded(name: str, load: Callable[[], Probe]) -> Probe:
    def probe() -> Platform | None:
        try:
            return load()()
        except Exception as error:
            _log.warning("platform %s is passed over: %s: %s", name, type(error).__name__, error)
            return None

    return probe
