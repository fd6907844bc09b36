from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from octavo.cache.retention import KeepLatest
from octavo.cache.spec import PagePart
from octavo.errors import UnsupportedModel
from octavo.layers.build import BuildContext
from octavo.layers.mamba import Mamba1Mixer, Mamba2Mixer, Mamba2Shape
from octavo.layers.stack import CausalLM
from octavo.models.bamba import Bamba
from octavo.models.mamba import Mamba
from octavo.models.mamba2 import Mamba2
from tests.models.harness import PagedModel, TensorEntry

CONFIG: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "tie_word_embeddings": True,
    # Mamba-2
    "num_heads": 4,
    "head_dim": 8,
    "n_groups": 2,
    "state_size": 6,
    # Bamba
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "attn_layer_indices": [1],
    "mamba_n_heads": 4,
    "mamba_d_state": 6,
    "max_position_embeddings": 64,
}
FAMILIES = [Mamba, Mamba2, Bamba]
SHAPE = Mamba2Shape(num_heads=4, head_dim=8, state_size=6, num_groups=2, kernel_size=4)


def build(**changes: Any) -> BuildContext:
    return BuildContext(**{"dtype": torch.float32, "max_model_len": 64, **changes})


def entries(model: CausalLM) -> Iterator[TensorEntry]:
    generator = torch.Generator().manual_seed(0)
    for weight in model.expected_weights():
        yield TensorEntry(weight.name, torch.randn(weight.shape, generator=generator) * 0.3)


def loaded(family: type[CausalLM], **changes: Any) -> CausalLM:
    model = family(CONFIG, build(**changes))
    model.load(entries(model))
    return model


def test_pages_hold_inputs_and_state() -> None:
    context = build(dtype=torch.bfloat16, block_size=8)
    first = Mamba1Mixer(context.at("a"), 16, 32, 6, 3, 4).cache_spec
    assert first.retention == KeepLatest()
    assert first.layout.tokens == 8
    assert first.layout.parts == (PagePart("conv", (32, 3), "bfloat16"), PagePart("ssm", (32, 6), "float32"))
    second = Mamba2Mixer(context.at("b"), 16, SHAPE, 1e-5).cache_spec
    assert second.layout.parts == (
        PagePart("conv", (32 + 2 * 2 * 6, 3), "bfloat16"),
        PagePart("ssm", (4, 8, 6), "float32"),
    )
    assert list(context.stateful) == ["a.mixer", "b.mixer"]


def test_parts_of_fused_parameters_can_be_divided_by_heads() -> None:
    mixer = Mamba2Mixer(build(), 16, SHAPE, 1e-5)
    assert mixer.in_proj.weight_shard.parts == (32, 32, 12, 12, 4)
    assert mixer.conv1d.weight.shard.parts == (32, 12, 12)  # type: ignore[attr-defined]
    assert all(mixer.get_parameter(name).shard.dim == 0 for name in ("A_log", "D", "dt_bias"))  # type: ignore[attr-defined]
    assert mixer.out_proj.shard_dim == 1


def test_a_convolution_of_one_input_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="mixer: a convolution of 1 inputs"):
        Mamba1Mixer(build().at("model"), 16, 32, 6, 3, 1)


def test_every_recurrent_layer_of_a_group_reads_one_plan() -> None:
    """One is made for the step, and what ops derive of it is made by the first layer."""
    paged = PagedModel(loaded(Mamba2))
    rows = [paged.add([1] * 9), paged.add([2] * 9)]
    context, input_ids = paged._context({rows[0]: 5, rows[1]: 3})
    paged.model.plan(context)
    (plan,) = [group.plan for group in context.groups]
    first, second = (layer.mixer for layer in paged.model.model.layers)  # type: ignore[union-attr]
    hidden = paged.model.model.embed(input_ids)
    first(hidden, context)
    derived = {name: id(value) for name, value in plan.derived.items()}
    assert derived
    second(hidden, context)
    assert {name: id(value) for name, value in plan.derived.items()} == derived
    assert plan.fresh.tolist() == [True, True]
    paged._release({rows[0]: 5, rows[1]: 3})
    paged.model.plan(context := paged._context({rows[0]: 1, rows[1]: 1})[0])
    assert context.groups[0].plan.fresh is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "ssm"), [(torch.bfloat16, "float32"), (torch.float16, "bfloat16")])
def test_narrow_types_stay_close_to_float32(family: type[CausalLM], dtype: torch.dtype, ssm: str) -> None:
    text, results = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3], []
    for changes in ({}, {"dtype": dtype, "ssm_state_dtype": ssm}):
        paged = PagedModel(loaded(family, **changes))
        row = paged.add(text)
        results.append(torch.cat([paged.step({row: count})[row] for count in (6, 1, 2, 1)]))
    wide, narrow = results
    assert narrow.dtype == dtype
    assert 0 < (narrow.float() - wide).abs().max() < 0.1 * wide.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_page_is_all_that_a_row_keeps(family: type[CausalLM]) -> None:
    """A row that is given a copy of another's blocks goes on as that one would."""
    text = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
    paged = PagedModel(loaded(family))
    row, copy = paged.add(text), paged.add(text)
    paged.step({row: 7})
    for pages, free, mine, blocks in zip(
        paged.pages, paged.free, paged.rows[copy].blocks, paged.rows[row].blocks, strict=True
    ):
        for block in blocks:
            mine.append(free.pop())
            pages[mine[-1]] = pages[block]
    paged.rows[copy].num_computed = 7
    alone = torch.cat([paged.step({row: count})[row] for count in (4, 1)])
    found = torch.cat([paged.step({copy: count})[copy] for count in (4, 1)])
    assert torch.equal(found, alone)


def test_caches_can_be_let_go() -> None:
    paged = PagedModel(loaded(Mamba))
    names = paged.model.cache_specs()
    paged.model.bind_caches({name: {} for name in names}, dict.fromkeys(names, 0))
    assert paged.model.model.layers[0].mixer.ssm_states.numel() == 0  # type: ignore[union-attr]
