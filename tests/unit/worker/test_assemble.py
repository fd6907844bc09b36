from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from octavo.config.options import make_options
from octavo.engine.configure import configure
from octavo.ops import dispatch
from octavo.runner.batch import BatchBuilder
from octavo.runner.graphs import EagerGraphs
from octavo.runner.row_table import RowTable
from octavo.worker.assemble import build_model, build_steps

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
    ("options", "conv", "ssm", "kv"),
    [
        ({}, "bfloat16", "float32", "bfloat16"),
        ({"mamba_ssm_cache_dtype": "bfloat16"}, "bfloat16", "bfloat16", "bfloat16"),
        ({"mamba_cache_dtype": "float32"}, "float32", "float32", "bfloat16"),
        ({"kv_cache_dtype": "float32"}, "bfloat16", "float32", "float32"),
        ({"kv_cache_dtype": "int8_per_token_head"}, "bfloat16", "float32", "int8"),
    ],
)
def test_the_types_of_what_is_kept_reach_the_layers(options: dict[str, str], conv: str, ssm: str, kv: str) -> None:
    configured = configure(make_options(model=BAMBA, load_format="dummy", dtype="bfloat16", **options))
    model = build_model(configured.config, configured.platform, torch.device("cpu"))
    specs = model.cache_specs()
    assert list(specs) == ["model.layers.0.mixer", "model.layers.1.attn"]
    assert [part.dtype for part in specs["model.layers.0.mixer"].layout.parts] == [conv, ssm]
    assert [part.dtype for part in specs["model.layers.1.attn"].layout.parts] == [kv]


@pytest.mark.parametrize("is_capturable", [True, False])
def test_steps_are_padded_only_where_everything_takes_padding(
    is_capturable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recurrent layer reads exact counts on the host; torch's cache write leaves no token out."""
    platform: Any = SimpleNamespace(graphs="captured")
    config: Any = SimpleNamespace(scheduler=SimpleNamespace(max_num_seqs=4, max_num_batched_tokens=16))
    model: Any = SimpleNamespace(is_capturable=is_capturable)
    monkeypatch.setattr(dispatch, "is_specialised", lambda op: not is_capturable)
    batches, graphs = build_steps(config, platform, model, RowTable(4, 64, [4], torch.device("cpu")), 16)
    assert isinstance(batches, BatchBuilder) and isinstance(graphs, EagerGraphs)
