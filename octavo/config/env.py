"""Every environment variable octavo reads, in one table. No other module touches `os.environ`."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ConfigurationError


@dataclass(frozen=True)
class Variable:
    """One environment variable: what it is called, what holds without it, what it does."""

    name: str
    default: str
    help: str


_PACKED_LIMIT = "OCTAVO_PACKED_WEIGHTS_GIB"

VARIABLES: tuple[Variable, ...] = (
    Variable("OCTAVO_CACHE", "", "Directory for the demo model and other files octavo keeps between runs."),
    Variable("XDG_CACHE_HOME", "~/.cache", "Parent of the cache directory `octavo/` where OCTAVO_CACHE is not set."),
    Variable(
        _PACKED_LIMIT,
        "20",
        "GiB of packed weights that are kept in the cache directory for CPUs, so that a later start maps them instead "
        "of packing; those unused for longest go first. 0: none.",
    ),
    Variable(
        "OCTAVO_TEST_FAULTS",
        "",
        "For octavo's own tests: token ids in prompts of two tokens and more at which the engine's process fails, as "
        "`raise=7,nan=8,exit=9,hang=6`, and `delay=0.01` seconds before each step. Never set it where anybody is "
        "served.",
    ),
    Variable(
        "OCTAVO_EXECUTE_MODEL_TIMEOUT_SECONDS",
        "300",
        "Seconds after which a step that has not ended counts as one that never will: the engine's process is killed "
        "and another one started. 0: never.",
    ),
    Variable("OMP_NUM_THREADS", "", "Most threads that compute on a CPU, where --threads is not given."),
    Variable("OCTAVO_API_KEY", "", "Key that requests to `octavo serve` must bring, where no --api-key is given."),
)

_BY_NAME = {variable.name: variable for variable in VARIABLES}


def read(name: str) -> str:
    """The value of a variable of the table, or its default; an empty value counts as not set."""
    return os.environ.get(name) or _BY_NAME[name].default


def read_seconds(name: str) -> float:
    """The same of a variable that is a time. Raises ConfigurationError."""
    text = read(name)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds < math.inf:
        raise ConfigurationError(f"{name} must be a number of seconds of at least 0, got {text!r}")
    return seconds


def packed_weights_limit() -> int:
    """Bytes that packed weights may take on disk. Raises ConfigurationError."""
    text = read(_PACKED_LIMIT)
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0.0 <= limit < math.inf:
        raise ConfigurationError(f"{_PACKED_LIMIT} must be a number of GiB of at least 0, got {text!r}")
    return int(limit * (1 << 30))


def thread_limit() -> int | None:
    """OMP_NUM_THREADS, None where it sets no limit. It may be a list, of which the first counts."""
    first = read("OMP_NUM_THREADS").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def cache_directory() -> Path:
    """Where octavo keeps files between runs. Not created here."""
    own = read("OCTAVO_CACHE")
    return Path(own).expanduser() if own else Path(read("XDG_CACHE_HOME")).expanduser() / "octavo"


def keep_compiled_kernels() -> None:
    """FlashAttention-4 keeps what it has compiled between runs only if it is told to, before it is imported; and where
    a reboot leaves it only if it is told where."""
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(cache_directory() / "flash-attention-4"))


def compiled_flash_kernels() -> bool:
    """Whether FlashAttention-4 has compiled anything here before."""
    keep_compiled_kernels()
    folder = Path(os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"])
    return any(path.is_file() for path in folder.rglob("*"))


def rest_idle_threads() -> None:
    """torch's OpenMP threads spin for milliseconds after each operator that used them, on the cores that octavo's own
    want. They sleep at once if they are told to, before torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def child_environment(**extra: str) -> dict[str, str]:
    """This process's environment for a child process, with `extra` on top. Unless it says otherwise NumPy gets no
    threads of its own, which would have nothing to do."""
    return {"OPENBLAS_NUM_THREADS": "1", **os.environ, **extra}
