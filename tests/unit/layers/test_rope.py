from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.layers.fields import Config, rope_fields
from octavo.layers.rope import RopeFields, RopeTable, inverse_frequencies

HEAD_DIM = 16
FACTORS = {"short_factor": [1 + i / 10 for i in range(8)], "long_factor": [1.0 + i * i for i in range(8)]}
CPU = torch.device("cpu")

# (rope_parameters, max_model_len, transformers' seq_len)
SCALINGS: dict[str, tuple[dict[str, Any], int, int | None]] = {
    "linear": ({"rope_type": "linear", "factor": 2.5}, 512, None),
    "dynamic, short": ({"rope_type": "dynamic", "factor": 4.0}, 200, 200),
    "dynamic, long": ({"rope_type": "dynamic", "factor": 4.0}, 1000, 1000),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        512,
        None,
    ),
    "llama3, other bounds": (
        {
            "rope_type": "llama3",
            "factor": 3.0,
            "low_freq_factor": 2.0,
            "high_freq_factor": 9.0,
            "original_max_position_embeddings": 1024,
        },
        512,
        None,
    ),
    "yarn": ({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}, 512, None),
    "yarn, own bounds": (
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 8.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
        512,
        None,
    ),
    "yarn, mscale": (
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 64,
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
        },
        512,
        None,
    ),
    "yarn, attention factor": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "attention_factor": 1.3},
        512,
        None,
    ),
    "longrope, short": ({"rope_type": "longrope", "original_max_position_embeddings": 128, **FACTORS}, 128, 128),
    "longrope, long": ({"rope_type": "longrope", "original_max_position_embeddings": 128, **FACTORS}, 129, 129),
    "longrope, factor": (
        {"rope_type": "longrope", "original_max_position_embeddings": 128, "factor": 32.0, **FACTORS},
        4096,
        4096,
    ),
    "longrope, attention factor": (
        {"rope_type": "longrope", "original_max_position_embeddings": 128, "attention_factor": 1.2, **FACTORS},
        256,
        256,
    ),
    "partial": ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, 512, None),
}


def config(**values: Any) -> dict[str, Any]:
    return {"max_position_embeddings": 512, "hidden_size": 64, "num_attention_heads": 4, **values}


@pytest.mark.parametrize("name", SCALINGS)
def test_equals_transformers(name: str) -> None:
    parameters, max_model_len, seq_len = SCALINGS[name]
    parameters = {"rope_theta": 5000.0, **parameters}
    theirs = LlamaConfig(**config(rope_parameters=dict(parameters)), head_dim=HEAD_DIM)
    inverse, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](theirs, CPU, seq_len=seq_len)
    fields = rope_fields(Config(config(rope_parameters=parameters)))
    found, found_factor = inverse_frequencies(fields, HEAD_DIM, max_model_len)
    torch.testing.assert_close(found, inverse, atol=0, rtol=1e-6)
    assert found_factor == pytest.approx(factor, abs=1e-12)


def test_default_frequencies() -> None:
    inverse, factor = inverse_frequencies(RopeFields(theta=100.0), 4, 8)
    torch.testing.assert_close(inverse, torch.tensor([1.0, 0.1]))
    assert factor == 1.0


def test_the_table_is_cosines_then_sines_times_the_factor() -> None:
    fields = RopeFields(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, theta=100.0)
    inverse, factor = inverse_frequencies(fields, 8, 50)
    table = RopeTable(fields, 8, 50, CPU).cos_sin
    assert table.shape == (50, 8)
    assert table.dtype == torch.float32
    assert factor != 1.0
    torch.testing.assert_close(table[33, :4], (33 * inverse).cos() * factor)
    torch.testing.assert_close(table[33, 4:], (33 * inverse).sin() * factor)


@pytest.mark.parametrize("name", ["dynamic, long", "longrope, long", "yarn", "llama3"])
def test_a_position_has_one_rotation_whatever_the_length_of_its_sequence(name: str) -> None:
    """What prefix caching and chunked prefill rest on: the table has no other input than the position."""
    parameters, max_model_len, _ = SCALINGS[name]
    fields = rope_fields(Config(config(rope_parameters={"rope_theta": 5000.0, **parameters})))
    table = RopeTable(fields, HEAD_DIM, max_model_len, CPU).cos_sin
    assert len(table) == max_model_len
    assert torch.equal(table, RopeTable(fields, HEAD_DIM, max_model_len, CPU).cos_sin)


def test_the_older_keys_mean_the_same() -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    new = rope_fields(Config(config(rope_parameters={"rope_theta": 7.0, "partial_rotary_factor": 0.5, **scaling})))
    old = rope_fields(Config(config(rope_theta=7.0, partial_rotary_factor=0.5, rope_scaling=scaling)))
    assert old == new
    assert new.theta == 7.0
    assert new.rotary_dim(16) == 8
    oldest = rope_fields(Config(config(rope_scaling={"type": "su", **FACTORS}, original_max_position_embeddings=64)))
    assert oldest.rope_type == "longrope"
    assert oldest.original_max_position_embeddings == 64
    assert rope_fields(Config(config(rope_scaling=None))) == RopeFields(
        max_position_embeddings=512, original_max_position_embeddings=512
    )


def test_what_is_missing_or_unknown_is_named() -> None:
    linear = RopeFields(rope_type="linear")
    with pytest.raises(UnsupportedModel, match="'linear' needs a factor"):
        inverse_frequencies(linear, 8, 8)
    with pytest.raises(UnsupportedModel, match="'spiral' is unknown; known: default, linear"):
        inverse_frequencies(replace(linear, rope_type="spiral"), 8, 8)
    with pytest.raises(UnsupportedModel, match="needs 4 values in long_factor, got 3"):
        inverse_frequencies(
            RopeFields(rope_type="longrope", long_factor=(1, 2, 3), original_max_position_embeddings=4), 8, 8
        )
    with pytest.raises(CheckpointError, match="rope factor must be a number, got 'two'"):
        rope_fields(Config(config(rope_scaling={"rope_type": "linear", "factor": "two"})))
