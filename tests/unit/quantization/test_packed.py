from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize

from octavo.config.options import make_options
from octavo.engine.configure import configure
from octavo.errors import WeightError
from octavo.layers.stack import CausalLM
from octavo.ops import dispatch
from octavo.quantization.method import UnquantizedLinear
from octavo.quantization.packed import PackedLinear
from octavo.worker.assemble import build_model
from octavo.worker.explain import explain_model
from tests.tiny_gguf import Tensor, sizes, write_gguf

if not dispatch.load("cpu"):
    pytest.skip("octavo's CPU kernels are not compiled", allow_module_level=True)

HIDDEN, MLP, VOCABULARY = 64, 128, 96


def blocks(rows: int, columns: int, format: str) -> Tensor:
    values = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32) / 8
    if format == "F32":
        return values
    return quantize(values, GGMLQuantizationType[format]), format


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    """Llama's, so that rows of q and k are stored in another order; query, key and value of different types."""
    tensors: dict[str, Tensor] = {
        "token_embd.weight": blocks(VOCABULARY, HIDDEN, "Q8_0"),
        "output_norm.weight": np.ones(HIDDEN, np.float32),
    }
    for layer in range(2):
        parts = {
            "attn_q": (HIDDEN, HIDDEN, "Q4_0"),
            "attn_k": (HIDDEN // 2, HIDDEN, "Q4_1"),
            "attn_v": (HIDDEN // 2, HIDDEN, "F32"),
            "attn_output": (HIDDEN, HIDDEN, "Q5_0"),
            "ffn_gate": (MLP, HIDDEN, "Q5_1"),
            "ffn_up": (MLP, HIDDEN, "Q8_0"),
            "ffn_down": (HIDDEN, MLP, "Q4_0"),
        }
        for part, (rows, columns, format) in parts.items():
            tensors[f"blk.{layer}.{part}.weight"] = blocks(rows, columns, format)
        for norm in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{norm}.weight"] = np.ones(HIDDEN, np.float32)
    return write_gguf(tmp_path / "tiny.gguf", "llama", sizes("llama", vocab_size=VOCABULARY), tensors)


def built(path: Path, **options: str) -> CausalLM:
    configured = configure(make_options(model=str(path), skip_tokenizer_init=True, **options))
    return build_model(configured.config, configured.platform, torch.device("cpu"))


def test_blocks_in_place_compute_what_expanded_weights_do(model_path: Path) -> None:
    packed = built(model_path, dtype="float32", quantization="gguf")
    expanded = built(model_path, dtype="float32")
    ids = torch.tensor([0, 5, 95])
    assert torch.equal(packed.model.embed(ids), expanded.model.embed(ids))
    mine, theirs = dict(packed.named_modules()), dict(expanded.named_modules())
    layers = [name for name, module in mine.items() if hasattr(module, "method")]
    assert len(layers) == 1 + 2 * 4
    for name in layers:
        assert isinstance(mine[name].method, PackedLinear) and isinstance(theirs[name].method, UnquantizedLinear)
        for rows in (1, 40):
            x = torch.randn(rows, mine[name].in_features)
            found = mine[name].method.apply(mine[name], x)
            expected = theirs[name].method.apply(theirs[name], x)
            assert float((found - expected).norm() / expected.norm()) < 2e-2, name
    assert packed.logits(torch.randn(2, HIDDEN)).shape == (2, VOCABULARY)


def test_weights_are_held_once_as_stored(model_path: Path) -> None:
    model = built(model_path)
    held = sum(parameter.nbytes for name, parameter in model.named_parameters() if "norm" not in name)
    per_value = {"Q4_0": 18 / 32, "Q4_1": 20 / 32, "Q5_0": 22 / 32, "Q5_1": 24 / 32, "Q8_0": 34 / 32, "dense": 2}
    dense = 2 if next(model.parameters()).dtype == torch.bfloat16 or model.model.embed.dtype == torch.bfloat16 else 4
    per_value["dense"] = dense
    layer = 64 * 64 * (per_value["Q4_0"] + per_value["Q4_1"] / 2 + per_value["dense"] / 2 + per_value["Q5_0"])
    layer += 64 * 128 * (per_value["Q5_1"] + per_value["Q8_0"] + per_value["Q4_0"])
    assert held == 2 * layer + VOCABULARY * HIDDEN * per_value["Q8_0"]


def test_explain_counts_the_blocks(model_path: Path) -> None:
    def weights(**options: str) -> str:
        configured = configure(make_options(model=str(model_path), skip_tokenizer_init=True, **options))
        rows = explain_model(configured.config, configured.platform)
        return next(row.value for row in rows if row.option == "weights")

    assert weights(quantization="gguf", dtype="bfloat16") == "65.5 KiB"
    assert weights(dtype="bfloat16") == "157 KiB"


def test_a_wrong_shape_is_named(tmp_path: Path, model_path: Path) -> None:
    model = built(model_path, quantization="gguf", dtype="bfloat16")
    configured = configure(make_options(model=str(model_path), skip_tokenizer_init=True))
    from octavo.loader.files import open_weights

    entries = [entry for entry in open_weights(configured.checkpoint) if "ffn" not in entry.name]
    swapped = [entry for entry in entries if entry.name.endswith("q_proj.weight")]
    object.__setattr__(swapped[0], "name", swapped[0].name.replace("q_proj", "k_proj"))
    with pytest.raises(WeightError, match=r"k_proj.weight' has shape \[64, 64\], the model expects \[32, 64\]"):
        model.load(swapped)
