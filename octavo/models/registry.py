"""Architecture names, as config.json has them, to model classes. A class is imported when its model is asked for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pkgutil import resolve_name
from typing import cast

from octavo.errors import UnsupportedModel
from octavo.layers.stack import CausalLM

_known: dict[str, str] = {
    "BambaForCausalLM": "octavo.models.bamba:Bamba",
    "Gemma3ForCausalLM": "octavo.models.gemma3:Gemma3",
    "LlamaForCausalLM": "octavo.models.llama:Llama",
    "Mamba2ForCausalLM": "octavo.models.mamba2:Mamba2",
    "MambaForCausalLM": "octavo.models.mamba:Mamba",
    "MistralForCausalLM": "octavo.models.mistral:Mistral",
    "Qwen2ForCausalLM": "octavo.models.qwen2:Qwen2",
    "Qwen3ForCausalLM": "octavo.models.qwen3:Qwen3",
}


def register(architecture: str, target: str) -> None:
    """Adds a model as "module:Class", or puts another class in the place of a known one."""
    module, _, name = target.partition(":")
    if not module or not name:
        raise ValueError(f'a model is registered as "module:Class", got {target!r}')
    _known[architecture] = target


def architectures() -> list[str]:
    return sorted(_known)


def model_class(names: Sequence[str]) -> type[CausalLM]:
    """The class of the first architecture of `names` (config.json's "architectures") that is known."""
    for name in names:
        if name in _known:
            return cast("type[CausalLM]", resolve_name(_known[name]))
    asked = ", ".join(names) or "(config.json names none)"
    near = list(dict.fromkeys(match for name in names for match in difflib.get_close_matches(name, _known, 3, 0.5)))
    known = f"the nearest known are {', '.join(near)}" if near else f"known are {', '.join(architectures())}"
    raise UnsupportedModel(
        f"architecture {asked} is unknown; {known}. "
        "To add one, see docs/guides/add-a-model.md (octavo.models.registry.register)"
    )
