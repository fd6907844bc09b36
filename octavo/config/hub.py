"""Snapshots of models on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub  # loads its parts when they are used

from octavo.errors import ModelNotFound

CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form ORGANISATION/MODEL."""
    return _HUB_ID.fullmatch(name) is not None and not name.endswith(".gguf")


def snapshot(model: str, revision: str | None, *, patterns: Sequence[str], allow_download: bool) -> Path:
    """The directory with the files of `model` that match `patterns`, fetched where they are not there yet.

    The hub's own library keeps them in its cache (HF_HOME) and draws the progress bars. Raises ModelNotFound.
    """
    at = f" at revision {revision}" if revision else ""
    try:
        return Path(
            huggingface_hub.snapshot_download(
                model, revision=revision, allow_patterns=list(patterns), local_files_only=not allow_download
            )
        )
    except huggingface_hub.errors.GatedRepoError as error:
        raise ModelNotFound(
            f"{model} is gated: accept its terms on the hub and log in (`hf auth login`, or set HF_TOKEN)"
        ) from error
    except huggingface_hub.errors.RevisionNotFoundError as error:
        raise ModelNotFound(f"the hub has {model}, but not revision {revision}") from error
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        raise ModelNotFound(f"the hub has no model {model}, or it is private and needs HF_TOKEN") from error
    except Exception as error:  # HTTP, TLS, proxy, disk: whatever it was, the model is not here
        raise ModelNotFound(
            f"{model}{at} is neither in the local cache nor could it be fetched: {_first_line(error)}. "
            f"With a network, `octavo pull {model}` fetches it ahead of time."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
