from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from octavo.attention.select import AttentionSelector
from octavo.cache.retention import KeepAll, KeepWindow
from octavo.cache.spec import CacheSpec, kv_layout
from octavo.errors import ConfigurationError, UnsupportedModel, WeightError
from octavo.layers.build import BuildContext
from octavo.layers.embedding import Embedding
from octavo.layers.linear import Linear
from octavo.layers.stack import CausalLM
from octavo.models.gemma3 import Gemma3
from octavo.models.llama import Llama
from octavo.quantization.method import LinearLayer, UnquantizedLinear
from octavo.runner.model import Model
from tests.models.harness import PagedModel, TensorEntry

CONFIG: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


def build(**changes: Any) -> BuildContext:
    return BuildContext(**{"dtype": torch.float32, "max_model_len": 64, **changes})


def entries(model: CausalLM) -> Iterator[TensorEntry]:
    generator = torch.Generator().manual_seed(0)
    for weight in model.expected_weights():
        yield TensorEntry(weight.name, torch.randn(weight.shape, generator=generator) * 0.3)


def test_expected_weights_are_the_checkpoints_names_and_shapes() -> None:
    shapes = {weight.name: weight.shape for weight in Llama(CONFIG, build()).expected_weights()}
    assert len(shapes) == 3 + 2 * 9
    assert shapes["model.embed_tokens.weight"] == shapes["lm_head.weight"] == (11, 16)
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (8, 16)
    assert shapes["model.layers.0.self_attn.o_proj.weight"] == (16, 16)
    assert shapes["model.layers.0.mlp.up_proj.weight"] == (24, 16)
    assert shapes["model.layers.0.post_attention_layernorm.weight"] == (16,)


def test_cache_specs_in_layer_order() -> None:
    model = Gemma3({**CONFIG, "sliding_window": 5, "sliding_window_pattern": 2}, build(cache_dtype="bfloat16"))
    layout = kv_layout(16, 1, 8, "bfloat16")
    assert model.cache_specs() == {
        "model.layers.0.attn": CacheSpec(layout, KeepWindow(5)),
        "model.layers.1.attn": CacheSpec(layout, KeepAll()),
    }
    assert list(model.cache_specs()) == ["model.layers.0.attn", "model.layers.1.attn"]


def test_a_linear_method_is_chosen_by_the_layers_path_and_finalized_once() -> None:
    made: list[str] = []
    finalized: list[str] = []

    class Noted(UnquantizedLinear):
        def finalize(self, layer: LinearLayer) -> None:
            finalized.append(layer.name)

    def method(name: str) -> Noted:
        made.append(name)
        return Noted()

    model = Llama(CONFIG, build(linear_method=method))
    paths = [name for name, module in model.named_modules() if isinstance(module, Linear | Embedding)]
    assert sorted(made) == sorted(paths)
    assert "model.layers.1.mlp.gate_up" in made
    assert not finalized
    model.load(entries(model))
    assert sorted(finalized) == sorted(paths)


def test_layers_share_a_rotary_table() -> None:
    context = build()
    Llama({**CONFIG, "num_hidden_layers": 3}, context)
    assert len(context.rope_tables) == 1
    Gemma3({**CONFIG, "sliding_window_pattern": 2}, other := build())
    assert len(other.rope_tables) == 2


def test_parameters_are_read_once_and_cast() -> None:
    model = Llama(CONFIG, build(dtype=torch.bfloat16))
    reads: list[str] = []

    class Counted(TensorEntry):
        def read(self) -> torch.Tensor:
            reads.append(self.name)
            return super().read()

    source = [Counted(entry.name, entry.tensor) for entry in entries(model)]
    sizes: list[int] = []
    model.load(source, sizes.append)
    assert sorted(reads) == sorted(entry.name for entry in source)
    assert sum(sizes) == sum(entry.nbytes for entry in source)
    by_name = {entry.name: entry.tensor for entry in source}
    qkv = model.model.layers[0].attn.qkv.weight
    assert qkv.dtype == torch.bfloat16
    expected = torch.cat([by_name[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"])
    assert torch.equal(qkv, expected.bfloat16())


def test_a_tied_head_is_the_embedding_and_ignores_a_second_copy() -> None:
    model = Llama({**CONFIG, "tie_word_embeddings": True}, build())
    source = [*entries(model), TensorEntry("lm_head.weight", torch.zeros(11, 16))]
    model.load(source)
    assert not any("head" in name for name, _ in model.named_parameters())
    hidden = torch.randn(2, 16)
    torch.testing.assert_close(model.logits(hidden), hidden @ source[0].tensor.T)


def test_an_untied_checkpoint_without_a_head_is_refused() -> None:
    model = Llama(CONFIG, build())
    with pytest.raises(WeightError, match=r"1 missing: lm_head\.weight"):
        model.load([entry for entry in entries(model) if entry.name != "lm_head.weight"])


def test_logits_are_float32_and_capped() -> None:
    model = Gemma3({**CONFIG, "final_logit_softcapping": 2.0}, build(dtype=torch.bfloat16))
    model.load(entries(model))
    logits = model.logits(torch.full((1, 16), 50.0, dtype=torch.bfloat16))
    assert logits.dtype == torch.float32
    assert 1.9 < logits.abs().max() <= 2.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_stay_close_to_float32(dtype: torch.dtype) -> None:
    """A cache in the model's own type, all the way through."""
    text = torch.randint(0, 11, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    found = []
    for chosen in (torch.float32, dtype):
        model = Gemma3({**CONFIG, "sliding_window": 9, "sliding_window_pattern": 2}, build(dtype=chosen))
        model.load(entries(model))
        paged = PagedModel(model, num_blocks=16)
        row = paged.add(text)
        found.append(torch.cat([paged.step({row: 39})[row], paged.step({row: 1})[row]]).float())
    assert found[0].std() > 0.3
    torch.testing.assert_close(found[1], found[0], atol=0.15, rtol=0)


def test_a_backend_that_cannot_serve_stops_the_build(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigurationError, match=r"torch_sdpa.*float8_e4m3fn"):
        Llama(CONFIG, build(cache_dtype="float8_e4m3fn"))
    with caplog.at_level(logging.INFO):
        Llama(CONFIG, build(attention=AttentionSelector(wish="torch_sdpa")))
    assert caplog.text.count("attention: torch_sdpa") == 1


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(UnsupportedModel, match="activation 'relu6' is unknown"):
        Llama({**CONFIG, "hidden_act": "relu6"}, build())


def test_caches_can_be_let_go() -> None:
    model: Model = Llama(CONFIG, build())
    model.bind_caches({name: {} for name in model.cache_specs()}, dict.fromkeys(model.cache_specs(), 0))
