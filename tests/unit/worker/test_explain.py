"""What is said of a model before it is loaded, against what is true of it once it is."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.attention import select
from octavo.config.options import make_options
from octavo.config.resolve import Reason
from octavo.engine.configure import Configured, configure
from octavo.errors import UnsupportedModel
from octavo.worker import assemble
from octavo.worker.assemble import build_skeleton
from octavo.worker.explain import explain_model, size
from octavo.worker.worker import Worker

COMMON = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 3, "max_position_embeddings": 64}
ATTENTION = {"intermediate_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
MAMBA2 = {
    **COMMON,
    "architectures": ["Mamba2ForCausalLM"],
    "num_heads": 4,
    "head_dim": 16,
    "state_size": 12,
    "n_groups": 2,
}
BAMBA = {
    **COMMON,
    **ATTENTION,
    "architectures": ["BambaForCausalLM"],
    "attn_layer_indices": [1],
    "mamba_n_heads": 4,
    "mamba_d_state": 16,
}
WINDOW = {
    **COMMON,
    **ATTENTION,
    "architectures": ["Qwen2ForCausalLM"],
    "use_sliding_window": True,
    "sliding_window": 24,
    "max_window_layers": 1,
}


def configured(model: dict[str, Any], **options: Any) -> Configured:
    values = {"load_format": "dummy", "dtype": "float32", "max_num_seqs": 3, "kv_cache_memory_bytes": 1 << 20}
    return configure(make_options(model=model, **{**values, **options}))


def explained(model: dict[str, Any], **options: Any) -> list[Reason]:
    found = configured(model, **options)
    return explain_model(found.config, found.platform)


def rows(reasons: list[Reason], option: str) -> list[Reason]:
    return [reason for reason in reasons if reason.option == option]


def test_a_recurrent_model_s_states_borders_and_room():
    reasons = explained(MAMBA2)
    (state,) = rows(reasons, "kept in the cache")
    # of each layer: 3 inputs of 64 + 2 * 2 * 12 channels, and 4 heads of 16 by 12; float32
    num_bytes = 3 * 4 * (3 * (64 + 2 * 2 * 12) + 4 * 16 * 12)
    assert state.value == f"{num_bytes / 1024:.1f} KiB a request and a checkpoint"
    room = (1 << 20) // num_bytes - 1  # one is the null slab
    assert f"room for {room}: {room - 3} checkpoints beside 3 requests" in state.why
    for border in ("every prompt", "border of 16 tokens passed in decoding", "branch", "every 1,024 tokens"):
        assert border in state.why
    (slab,) = rows(reasons, "slab")
    assert slab.value == f"{num_bytes / 1024:.1f} KiB" and "1 state" in slab.why
    assert not rows(reasons, "attention_backend")


def test_a_hybrid_s_kinds_of_layers_share_slabs():
    reasons = explained(BAMBA)
    state, keys = rows(reasons, "kept in the cache")
    assert state.why.startswith("2 recurrent layers: one state") and keys.why.startswith("1 attention layers: every")
    assert keys.value == "128 B a token"  # keys and values of 2 heads of 8, float32
    (slab,) = rows(reasons, "slab")
    assert "1 state or " in slab.why and "tokens in blocks of 16" in slab.why
    assert "if nothing else is kept" in state.why and "if nothing else is kept" in keys.why


def test_windows_and_backends_by_kind_of_layer(monkeypatch):
    class Picky:
        name = "picky"

        def why_not(self, query: Any) -> str | None:
            return "no windows here" if query.window else None

    monkeypatch.setitem(sys.modules, "octavo_test_backends", SimpleNamespace(Picky=Picky))
    monkeypatch.setattr(select, "_known", {**select._known, "picky": "octavo_test_backends:Picky"})
    found = configured(WINDOW)
    platform = type(found.platform)(
        **{**vars(found.platform), "attention_order": lambda query: ("absent", "picky", "torch_sdpa")}
    )
    reasons = explain_model(found.config, platform)
    full, window = sorted(rows(reasons, "kept in the cache"), key=lambda row: "last" in row.why)
    assert full.why.startswith("1 attention layers: every token")
    assert window.why.startswith("2 attention layers: the last 24 tokens")
    by_name = {row.value: row.why for row in rows(reasons, "attention_backend")}
    assert set(by_name) == {"picky", "torch_sdpa"}
    assert by_name["picky"].startswith("1 layers of 4 heads of 8") and "not absent: unknown" in by_name["picky"]
    assert "window 24" in by_name["torch_sdpa"] and "not picky: no windows here" in by_name["torch_sdpa"]
    assert all("the first of absent, picky, torch_sdpa that can" in why for why in by_name.values())


@pytest.mark.parametrize("model", [MAMBA2, BAMBA, WINDOW], ids=["mamba2", "bamba", "window"])
def test_it_is_what_the_worker_then_does_and_takes_no_weights(model, monkeypatch):
    found = configured(model)
    worker = Worker(found.config, found.platform)
    monkeypatch.setattr(assemble, "open_weights", None)
    monkeypatch.setattr(assemble, "dummy_tensor", None)
    skeleton, _ = build_skeleton(found.config, found.platform)
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    assert skeleton.cache_specs() == worker.model.cache_specs()
    (cache,) = rows(explain_model(found.config, found.platform), "cache")
    assert cache.value == size(worker.cache.num_bytes)
    (weights,) = rows(explain_model(found.config, found.platform), "weights")
    assert weights.value == size(sum(p.nbytes for p in worker.model.parameters()))


def test_what_does_not_fit_is_said_and_no_error():
    (cache,) = rows(explained(BAMBA, kv_cache_memory_bytes=1 << 12), "cache")
    assert cache.value == "does not fit" and "needs at least" in cache.why


def test_an_unknown_architecture_is_an_error():
    with pytest.raises(UnsupportedModel):
        explained({**MAMBA2, "architectures": ["NoSuchModel"]})
