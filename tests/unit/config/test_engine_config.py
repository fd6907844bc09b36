"""A configuration reaches another process as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from octavo.config.engine_config import AdmissionConfig, EngineConfig, decode_config, encode_config
from octavo.config.options import make_options
from octavo.engine.configure import configure
from octavo.errors import ConfigurationError

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "eos_token_id": [2, 3],
}


def config(**options: Any) -> EngineConfig:
    return configure(make_options(load_format="dummy", **options), CONFIG).config


def test_nothing_is_lost_on_the_way() -> None:
    made = config(override_generation_config={"temperature": 0.5}, max_num_seqs=7, kv_cache_memory_bytes="1GiB")
    made = replace(made, model=replace(made.model, checkpoint=replace(made.model.checkpoint, path=Path("/a b/ü"))))
    assert decode_config(encode_config(made)) == made


def test_admission_limits_reach_the_configuration() -> None:
    assert config().admission == AdmissionConfig(None, None)
    assert config(max_num_queued_reqs=5, max_num_queued_tokens="2K").admission == AdmissionConfig(5, 2048)
    for name in ("max_num_queued_reqs", "max_num_queued_tokens"):
        with pytest.raises(ConfigurationError, match=name):
            config(**{name: 0})


@pytest.mark.parametrize("value", [object(), 2**70, {1, 2, object()}])
def test_what_has_no_form_outside_python_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot be sent"):
        encode_config(config(hf_overrides={"odd": value}))


def test_what_is_no_configuration_is_refused() -> None:
    for data in (b"", b"\x80", encode_config(config())[:-5]):
        with pytest.raises(ValueError):
            decode_config(data)
