"""What config.json of the recurrent families may say. Their arithmetic is compared in tests/models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.layers.build import BuildContext
from octavo.models.bamba import Bamba, BambaFields
from octavo.models.mamba import Mamba, MambaFields
from octavo.models.mamba2 import Mamba2Fields

MAMBA: dict[str, Any] = {
    "architectures": ["MambaForCausalLM"],
    "vocab_size": 11,
    "hidden_size": 40,
    "num_hidden_layers": 2,
}
MAMBA2 = {**MAMBA, "architectures": ["Mamba2ForCausalLM"], "num_heads": 8, "head_dim": 10}
BAMBA = {
    **MAMBA,
    "architectures": ["BambaForCausalLM"],
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "mamba_n_heads": 8,
    "max_position_embeddings": 128,
}


def test_sizes_that_follow_from_others() -> None:
    fields = MambaFields.read(MAMBA)
    assert (fields.inner_size, fields.time_step_rank, fields.state_size, fields.kernel_size) == (80, 3, 16, 4)
    fields = MambaFields.read({**MAMBA, "intermediate_size": 120, "time_step_rank": 5})
    assert (fields.inner_size, fields.time_step_rank) == (120, 5)
    assert MambaFields.read({**MAMBA, "time_step_rank": "auto"}).time_step_rank == 3
    assert MambaFields.read(MAMBA).tie_word_embeddings
    assert not Mamba2Fields.read(MAMBA2).tie_word_embeddings
    for head_dim in ({}, {"mamba_d_head": "auto"}, {"mamba_d_head": 10}):
        assert BambaFields.read({**BAMBA, **head_dim}).shape.head_dim == 10


@pytest.mark.parametrize(
    ("limit", "found"),
    [
        ({}, (0.0, float("inf"))),
        ({"time_step_limit": [0.0, float("inf")]}, (0.0, float("inf"))),
        ({"time_step_limit": [0.0, {"__float__": "Infinity"}]}, (0.0, float("inf"))),
        ({"time_step_limit": [0.001, 0.1]}, (0.001, 0.1)),
        ({"time_step_limit": None}, (0.0, float("inf"))),
    ],
)
def test_time_step_limits(limit: dict[str, Any], found: tuple[float, float]) -> None:
    assert Mamba2Fields.read({**MAMBA2, **limit}).shape.time_step_limit == found


@pytest.mark.parametrize("limit", [3, [1], [1, "x"], [0, {"a": 1}]])
def test_a_bad_time_step_limit_is_named(limit: Any) -> None:
    with pytest.raises(CheckpointError, match="time_step_limit must be two numbers"):
        Mamba2Fields.read({**MAMBA2, "time_step_limit": limit})


def test_sizes_that_contradict_each_other_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"num_heads must be expand \* hidden_size / head_dim = 80 / 10, got 4"):
        Mamba2Fields.read({**MAMBA2, "num_heads": 4})
    with pytest.raises(CheckpointError, match="num_heads must be a multiple of n_groups = 3, got 8"):
        Mamba2Fields.read({**MAMBA2, "n_groups": 3})
    with pytest.raises(CheckpointError, match="mamba_n_heads must be a multiple of mamba_n_groups = 3, got 8"):
        BambaFields.read({**BAMBA, "mamba_n_groups": 3})
    with pytest.raises(CheckpointError, match="state_size must be a whole number above 0, got 0"):
        Mamba2Fields.read({**MAMBA2, "state_size": 0})
    with pytest.raises(CheckpointError, match="attn_layer_indices must be a list of layers below"):
        BambaFields.read({**BAMBA, "attn_layer_indices": [2]})


@pytest.mark.parametrize(("fields", "config"), [(MambaFields, MAMBA), (Mamba2Fields, MAMBA2), (BambaFields, BAMBA)])
def test_another_activation_is_refused(fields: Any, config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match="activation 'gelu' of a mixer is not silu"):
        fields.read({**config, "hidden_act": "gelu"})


def test_half_of_a_head_is_rotated_unless_the_configuration_says_otherwise() -> None:
    assert BambaFields.read(BAMBA).rope.rotary_dim(10) == 5
    assert BambaFields.read({**BAMBA, "rope_parameters": {"partial_rotary_factor": 0.2}}).rope.rotary_dim(10) == 2


def test_names_of_checkpoints() -> None:
    build = BuildContext(torch.float32, 64)
    expected = {weight.name: weight.shape for weight in Mamba(MAMBA, build).expected_weights()}
    assert expected["backbone.embeddings.weight"] == (11, 40)
    assert expected["backbone.norm_f.weight"] == expected["backbone.layers.1.norm.weight"] == (40,)
    assert expected["backbone.layers.0.mixer.in_proj.weight"] == (160, 40)
    assert expected["backbone.layers.0.mixer.conv1d.weight"] == (80, 1, 4)
    assert len(expected) == 2 + 2 * 10
    assert Mamba.weights.target("backbone.embedding.weight").parameter == "model.embed.weight"
    config = {**BAMBA, "attn_layer_indices": [1]}
    names = {weight.name for weight in Bamba(config, BuildContext(torch.float32, 64)).expected_weights()}
    assert {
        "model.final_layernorm.weight",
        "model.layers.0.mamba.A_log",
        "model.layers.0.mamba.norm.weight",
        "model.layers.0.pre_ff_layernorm.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.1.feed_forward.up_proj.weight",
        "model.layers.1.input_layernorm.weight",
    } <= names
