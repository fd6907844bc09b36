"""Finds what the user named as a model and reads its configuration. Weights are `loader/files.py`'s."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from octavo.config import demo, hub
from octavo.config.gguf_config import config_from_gguf, generation_config_from_gguf
from octavo.config.gguf_header import read_header
from octavo.errors import CheckpointError, ConfigurationError, ModelNotFound, UnsupportedModel

LOAD_FORMATS = ("auto", "safetensors", "gguf", "dummy")

Format = Literal["safetensors", "gguf", "config"]


@dataclass(frozen=True)
class Checkpoint:
    """A model on this machine.

    `path` is a directory or a .gguf file; None for a plain dict. `config` has the keys of config.json whatever the
    format. Format "config" is a configuration alone, for load_format="dummy".
    """

    source: str  # what the user named
    path: Path | None
    format: Format
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    name: str  # for display and serving

    @property
    def architecture(self) -> str:
        """The model class the configuration names, e.g. "LlamaForCausalLM"."""
        return str(self.config["architectures"][0])

    @property
    def dtype(self) -> str | None:
        """The dtype the configuration names: "bfloat16"; None if it names none."""
        named = self.config.get("dtype") or self.config.get("torch_dtype")
        return str(named).removeprefix("torch.") if named else None

    @property
    def is_gguf_file(self) -> bool:
        """Whether `path` is a .gguf file, also where only its configuration is used."""
        return self.path is not None and self.path.is_file()

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end an answer, from generation_config, else config."""
        named = self.generation_config.get("eos_token_id", self.config.get("eos_token_id"))
        if named is None:
            return ()
        return tuple(int(token) for token in named) if isinstance(named, list | tuple) else (int(named),)


def find_checkpoint(
    model: str | Mapping[str, Any] | None,
    *,
    revision: str | None = None,
    load_format: str = "auto",
    hf_overrides: Mapping[str, Any] | None = None,
    generation_config: str = "auto",
    allow_download: bool = True,
) -> Checkpoint:
    """The checkpoint for a directory, a .gguf file, a hub id, a configuration dict, or (None) the demo model.

    `hf_overrides` replaces keys of the configuration. `generation_config`: "auto" takes the checkpoint's, "vllm" only
    its token ids, anything else names a directory with a generation_config.json.
    Raises ModelNotFound, UnsupportedModel, WeightError, ConfigurationError.
    """
    if load_format not in LOAD_FORMATS:
        raise ConfigurationError(f"load_format must be one of {', '.join(LOAD_FORMATS)}, got {load_format!r}")
    if isinstance(model, Mapping):
        if load_format != "dummy":
            raise ConfigurationError(f"a configuration dict needs load_format='dummy', got {load_format!r}")
        found = Checkpoint("(dict)", None, "config", dict(model), {}, str(model.get("model_type", "dummy")))
    else:
        path = locate(model, revision=revision, load_format=load_format, allow_download=allow_download)
        source = demo.ALIAS if model is None else str(model)
        found = _read(source, path, load_format, name=_display_name(source, path))
    config = {**found.config, **(hf_overrides or {})}
    _check_config(config, found.source)
    return Checkpoint(
        found.source,
        found.path,
        found.format,
        config,
        _generation_config(found.generation_config, generation_config),
        found.name,
    )


def pull(model: str | None, revision: str | None = None) -> Path:
    """Fetch a model ahead of time, so that a later start needs no network. Where it lies on this machine."""
    return locate(model, revision=revision)


def locate(
    model: str | None, *, revision: str | None = None, load_format: str = "auto", allow_download: bool = True
) -> Path:
    """The directory or .gguf file for what the user named, fetched where need be. Raises ModelNotFound."""
    if model is None or (model == demo.ALIAS and not Path(model).exists()):
        return demo.demo_model(allow_download=allow_download)
    if not model:
        raise ModelNotFound("model must be a directory, a .gguf file or a hub id (ORGANISATION/MODEL), got ''")
    path = Path(model).expanduser()
    if path.is_dir():
        return _single_gguf(path) or path
    if path.is_file():
        return path
    if hub.is_hub_id(model):
        wanted = hub.CONFIG_FILES if load_format == "dummy" else (*hub.CONFIG_FILES, *hub.WEIGHT_FILES)
        return hub.snapshot(model, revision, patterns=wanted, allow_download=allow_download)
    raise ModelNotFound(
        f"there is no file or directory {model}; a model on the hub is named ORGANISATION/MODEL, and `demo` (or no "
        "name) is the demo model"
    )


def _single_gguf(directory: Path) -> Path | None:
    """A directory without config.json that holds one .gguf file stands for that file."""
    if (directory / "config.json").is_file():
        return None
    found = sorted(directory.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ModelNotFound(f"{directory} has no config.json and several GGUF files; name one of them: {names}")
    return found[0] if found else None


def _read(source: str, path: Path, load_format: str, name: str) -> Checkpoint:
    if path.is_file():
        if load_format == "safetensors":
            raise ConfigurationError(f"load_format is 'safetensors', but {path} is a file, not a directory")
        header = read_header(path)
        kind: Format = "config" if load_format == "dummy" else "gguf"
        return Checkpoint(source, path, kind, config_from_gguf(header), generation_config_from_gguf(header), name)
    if load_format == "gguf":
        raise ConfigurationError(f"load_format is 'gguf', but {path} is not a .gguf file")
    config = read_json(path / "config.json")
    if config is None:
        raise ModelNotFound(f"{path} has no config.json; is it a Hugging Face model directory?")
    if load_format != "dummy":
        _require_safetensors(path)
    generation = read_json(path / "generation_config.json") or {}
    return Checkpoint(source, path, "config" if load_format == "dummy" else "safetensors", config, generation, name)


def _require_safetensors(directory: Path) -> None:
    if any(directory.glob("*.safetensors")) or (directory / "model.safetensors.index.json").is_file():
        return
    other = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    has = f" (it has {', '.join(other[:3])}, which octavo does not read: they can run code)" if other else ""
    raise UnsupportedModel(f"{directory} has no .safetensors file{has}")


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file of a checkpoint; None if there is no such file. Raises CheckpointError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} should hold a JSON object, not a {type(content).__name__}")
    return content


def _check_config(config: Mapping[str, Any], source: str) -> None:
    named = config.get("architectures")
    if not isinstance(named, list | tuple) or not named:
        raise UnsupportedModel(
            f"{source}: config.json names no architecture; give one with hf_overrides={{'architectures': [...]}}"
        )
    if "text_config" in config and ("vision_config" in config or "audio_config" in config):
        raise UnsupportedModel(
            f"{source}: {named[0]} is a multimodal model (its text model is under text_config); only text models are "
            "served"
        )


def _generation_config(own: Mapping[str, Any], choice: str) -> Mapping[str, Any]:
    if choice == "auto":
        return own
    if choice == "vllm":
        return {key: value for key, value in own.items() if key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    named = Path(choice).expanduser()
    chosen = read_json(named / "generation_config.json" if named.is_dir() else named)
    if chosen is None:
        raise ConfigurationError(
            f"generation_config must be 'auto', 'vllm' or a directory with generation_config.json, got {choice!r}"
        )
    return chosen


def _display_name(source: str, path: Path) -> str:
    if source == demo.ALIAS:
        return demo.NAME
    if path.is_file():
        return path.stem
    return source if hub.is_hub_id(source) and not Path(source).exists() else path.resolve().name
