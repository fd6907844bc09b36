from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo.config.options import make_options
from octavo.engine.configure import configure
from octavo.worker.assemble import build_model

BAMBA: dict[str, Any] = {
    "architectures": ["BambaForCausalLM"],
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "attn_layer_indices": [1],
    "mamba_n_heads": 4,
    "mamba_d_state": 6,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("options", "conv", "ssm"),
    [
        ({}, "bfloat16", "float32"),
        ({"mamba_ssm_cache_dtype": "bfloat16"}, "bfloat16", "bfloat16"),
        ({"mamba_cache_dtype": "float32"}, "float32", "float32"),
    ],
)
def test_the_types_of_states_reach_the_layers(options: dict[str, str], conv: str, ssm: str) -> None:
    configured = configure(make_options(model=BAMBA, load_format="dummy", dtype="bfloat16", **options))
    model = build_model(configured.config, configured.platform, torch.device("cpu"))
    specs = model.cache_specs()
    assert list(specs) == ["model.layers.0.mixer", "model.layers.1.attn"]
    assert [part.dtype for part in specs["model.layers.0.mixer"].layout.parts] == [conv, ssm]
    assert [part.dtype for part in specs["model.layers.1.attn"].layout.parts] == ["bfloat16"]
