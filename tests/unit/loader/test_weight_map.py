from __future__ import annotations

import pytest

from octavo.loader.weight_map import Target, WeightMap
from octavo.models.gemma3 import Gemma3
from octavo.models.llama import Llama

MAP = WeightMap(
    rename={"self_attn": "attn", "o_proj": "out", "a.b": "c", "a": "d"},
    fuse={"attn.qkv": ("q_proj", "k_proj", "v_proj"), "up": ("x", "y")},
    ignore=("spare.weight",),
)


@pytest.mark.parametrize(
    ("name", "parameter", "part"),
    [
        ("layers.3.self_attn.k_proj.bias", "layers.3.attn.qkv.bias", 1),
        ("layers.3.self_attn.o_proj.weight", "layers.3.attn.out.weight", None),
        ("layers.3.self_attn.q_proj_extra.weight", "layers.3.attn.q_proj_extra.weight", None),
        ("layers.3.cross.q_proj.weight", "layers.3.cross.q_proj.weight", None),
        ("my_self_attn.weight", "my_self_attn.weight", None),
        ("a.b.weight", "c.weight", None),
        ("a.weight", "d.weight", None),
        ("y.weight", "up.weight", 1),
    ],
)
def test_names_are_matched_by_whole_components(name: str, parameter: str, part: int | None) -> None:
    assert MAP.target(name) == Target(parameter, part)


@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("x.spare.weight", True),
        ("x.spare.bias", False),
        ("x.nospare.weight", False),
    ],
)
def test_ignored_names(name: str, ignored: bool) -> None:
    assert MAP.ignores(name) is ignored


@pytest.mark.parametrize("names", [Llama.weights, Gemma3.weights])
@pytest.mark.parametrize(
    "parameter",
    [
        "model.embed.weight",
        "model.norm.weight",
        "head.weight",
        "model.layers.0.attn.qkv.bias",
        "model.layers.0.attn.out.weight",
        "model.layers.12.mlp.gate_up.weight",
        "model.layers.12.mlp.down.weight",
        "model.layers.1.attn_norm.weight",
        "model.layers.1.mlp_norm.weight",
        "model.layers.1.attn.q_norm.weight",
    ],
)
def test_sources_and_targets_are_inverse(names: WeightMap, parameter: str) -> None:
    sources = names.sources(parameter)
    parts = [None] if len(sources) == 1 else list(range(len(sources)))
    assert [names.target(source) for source in sources] == [Target(parameter, part) for part in parts]


def test_extending_overrides_and_adds() -> None:
    more = MAP.extend(rename={"o_proj": "o"}, ignore=("z",))
    assert more.target("self_attn.o_proj") == Target("attn.o", None)
    assert more.ignores("z.weight")
    assert more.ignores("spare.weight")
    assert not MAP.ignores("z.weight")
