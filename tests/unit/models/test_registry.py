from __future__ import annotations

import subprocess
import sys

import pytest

from octavo.errors import UnsupportedModel
from octavo.models import registry
from octavo.models.llama import Llama


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_known", dict(registry._known))


def test_the_first_known_name_wins() -> None:
    assert registry.model_class(["Unknown", "LlamaForCausalLM", "Qwen2ForCausalLM"]) is Llama


def test_every_registered_class_can_be_imported() -> None:
    for name in registry.architectures():
        assert registry.model_class([name]).weights is not None


def test_an_unknown_architecture_lists_the_nearest_and_says_how_to_add_one() -> None:
    with pytest.raises(UnsupportedModel) as caught:
        registry.model_class(["Qwen9ForCausalLM"])
    message = str(caught.value)
    assert "Qwen9ForCausalLM is unknown" in message
    assert "Qwen2ForCausalLM" in message
    assert "Qwen3ForCausalLM" in message
    assert "add-a-model.md" in message


def test_nothing_near_lists_all() -> None:
    with pytest.raises(UnsupportedModel, match=r"known are BambaForCausalLM, Gemma3ForCausalLM"):
        registry.model_class(["zzz"])
    with pytest.raises(UnsupportedModel, match="names none"):
        registry.model_class([])


def test_models_can_be_registered_from_outside() -> None:
    registry.register("MineForCausalLM", "octavo.models.llama:Llama")
    assert registry.model_class(["MineForCausalLM"]) is Llama
    with pytest.raises(ValueError, match='"module:Class", got'):
        registry.register("MineForCausalLM", "octavo.models.llama")


def test_models_are_imported_when_asked_for() -> None:
    code = (
        "import sys, octavo.models.registry as r; r.model_class(['Qwen2ForCausalLM']);"
        "print(sorted(m for m in sys.modules if m.startswith('octavo.models.')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "['octavo.models.llama', 'octavo.models.qwen2', 'octavo.models.registry']"
