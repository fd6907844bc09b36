from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.layers.fields import ModelFields, from_hf
from octavo.models.gemma3 import Gemma3Fields
from octavo.models.mistral import MistralFields
from octavo.models.qwen2 import Qwen2Fields

CONFIG: dict[str, Any] = {
    "architectures": ["TinyForCausalLM"],
    "vocab_size": 10,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 100,
}


class TinyFields(ModelFields):
    num_heads: int = from_hf("n_head", "num_attention_heads")
    flavour: str | None = from_hf("flavour", default=None)
    doubled: int = from_hf(read=lambda config: 2 * config.need("hidden_size"))


def test_keys_defaults_and_readers() -> None:
    fields = TinyFields.read({**CONFIG, "n_head": 8, "head_dim": None})
    assert (fields.num_heads, fields.num_kv_heads, fields.head_dim) == (8, 4, 8)
    assert (fields.activation, fields.norm_eps, fields.tie_word_embeddings) == ("silu", 1e-6, False)
    assert (fields.flavour, fields.doubled, fields.rope.theta) == (None, 64, 10000.0)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json of TinyForCausalLM has no '{key}'"):
        TinyFields.read({name: value for name, value in CONFIG.items() if name != key})


def test_every_alternative_of_a_missing_key_is_named() -> None:
    with pytest.raises(CheckpointError, match="no 'n_head' or 'num_attention_heads'"):
        TinyFields.read({**CONFIG, "num_attention_heads": None, "num_key_value_heads": 1, "head_dim": 1})


@pytest.mark.parametrize(
    ("key", "value", "limit"),
    [
        ("vocab_size", "10", "a whole number above 0"),
        ("hidden_size", 0, "a whole number above 0"),
        ("num_hidden_layers", True, "a whole number above 0"),
        ("rms_norm_eps", "small", "a number"),
        ("tie_word_embeddings", 1, "true or false"),
        ("flavour", 3, "a string"),
        ("num_key_value_heads", 3, "a multiple of num_key_value_heads = 3"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(key: str, value: object, limit: str) -> None:
    with pytest.raises(CheckpointError, match=f"TinyForCausalLM: .* must be {limit}, got"):
        TinyFields.read({**CONFIG, key: value})


def test_mistral_has_a_window_unless_its_configuration_says_null() -> None:
    assert MistralFields.read({**CONFIG, "sliding_window": 7}).window == 7
    assert MistralFields.read({**CONFIG, "sliding_window": None}).window is None
    assert MistralFields.read(CONFIG).window == 4096


def test_qwen_windows() -> None:
    on = {**CONFIG, "use_sliding_window": True, "sliding_window": 5}
    assert Qwen2Fields.read({**CONFIG, "sliding_window": 5, "max_window_layers": 1}).windows == (None,) * 4
    assert Qwen2Fields.read({**on, "max_window_layers": 3}).windows == (None, None, None, 5)
    mixed = ["sliding_attention", "full_attention"] * 2
    assert Qwen2Fields.read({**on, "layer_types": mixed}).windows == (5, None, 5, None)
    with pytest.raises(CheckpointError, match="layer_types must be a list of num_hidden_layers = 4"):
        Qwen2Fields.read({**on, "layer_types": mixed[:3]})
    with pytest.raises(UnsupportedModel, match="'chunked_attention'"):
        Qwen2Fields.read({**on, "layer_types": ["chunked_attention"] * 4})


def test_gemma_layers_and_their_rotary_bases() -> None:
    old = Gemma3Fields.read(
        {
            **CONFIG,
            "sliding_window": 9,
            "sliding_window_pattern": 3,
            "rope_theta": 1e5,
            "rope_local_base_freq": 50.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        }
    )
    assert old.windows == (9, 9, None, 9)
    assert (old.rope.theta, old.rope.rope_type, old.rope.factor) == (1e5, "linear", 8.0)
    assert (old.local_rope.theta, old.local_rope.rope_type) == (50.0, "default")
    assert old.embed_scale == pytest.approx(32**0.5)
    assert old.tie_word_embeddings
    new = Gemma3Fields.read(
        {
            **CONFIG,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        }
    )
    assert (new.rope, new.local_rope.theta) == (old.rope, 50.0)
    assert new.windows == (4096,) * 4
    bare = Gemma3Fields.read(CONFIG)
    assert (bare.rope.theta, bare.local_rope.theta) == (1e6, 1e4)
    with pytest.raises(UnsupportedModel, match="use_bidirectional_attention"):
        Gemma3Fields.read({**CONFIG, "use_bidirectional_attention": True})
