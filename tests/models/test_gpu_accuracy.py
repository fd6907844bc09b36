"""bf16 on a GPU against float32, every family with attention: as octavo computes it there, at most twice as far off as
with torch's own attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from octavo.attention.select import AttentionSelector
from octavo.layers.build import BuildContext
from octavo.layers.stack import CausalLM
from octavo.models import registry
from octavo.ops import dispatch
from octavo.platforms import cuda
from tests.models.harness import PagedModel, TensorEntry

VOCAB = 512
PROMPT, OTHER, MAX_LEN = 190, 70, 256
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LEN,
    "rms_norm_eps": 1e-5,
    "head_dim": 128,
    "tie_word_embeddings": False,
}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"] * 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"]},
    "llama-64": {"architectures": ["LlamaForCausalLM"], "head_dim": 64, "num_key_value_heads": 8},
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": 50},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "hidden_size": 1024},
    "qwen2-window": {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 512,
        "use_sliding_window": True,
        "sliding_window": 40,
        "max_window_layers": 1,
    },
    "qwen3": {"architectures": ["Qwen3ForCausalLM"]},
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "sliding_window": 64,
        "query_pre_attn_scalar": 128,
        **WINDOWS,
    },
    "gemma3-256": {
        "architectures": ["Gemma3ForCausalLM"],
        "head_dim": 256,
        "sliding_window": 30,
        "query_pre_attn_scalar": 256,
        **WINDOWS,
    },
    "bamba": {
        "architectures": ["BambaForCausalLM"],
        "hidden_size": 1024,
        "attn_layer_indices": [1, 3],
        "mamba_n_heads": 32,
        "mamba_d_state": 16,
    },
}
NO_ATTENTION = {"MambaForCausalLM", "Mamba2ForCausalLM"}


def weights(model: CausalLM) -> Iterator[TensorEntry]:
    """The same for every dtype: values that bf16 can say, such that every parameter matters."""
    generator = torch.Generator().manual_seed(1)
    for expected in model.expected_weights():
        noise = torch.randn(expected.shape, generator=generator)
        name = expected.name
        if name.endswith("A_log"):
            value = noise - 2
        elif len(expected.shape) == 2:
            value = noise / 4 if "embed" in name else noise / expected.shape[1] ** 0.5
        elif "norm" in name:
            value = noise * 0.2 + (0.0 if "gemma" in type(model).__module__ else 1.0)
        else:
            value = noise * 0.2
        yield TensorEntry(name, value.bfloat16().to(expected.dtype))


def logits(
    config: dict[str, Any], dtype: torch.dtype, device: str, order: tuple[str, ...]
) -> tuple[torch.Tensor, set[str]]:
    """[tokens, vocab] float32 of two prompts, the first in two chunks, then decoded side by side; and the backends."""
    capability = torch.cuda.get_device_capability() if device.startswith("cuda") else None
    attention = AttentionSelector(lambda query: order)
    build = BuildContext(dtype, MAX_LEN, torch.device(device), attention=attention, capability=capability)
    with torch.inference_mode():
        model = registry.model_class(config["architectures"])(config, build)
        model.load(weights(model))
    paged = PagedModel(model, device=device, free_byte=0)
    draw = torch.Generator().manual_seed(2)
    first, second = (
        paged.add(torch.randint(0, VOCAB, (length,), generator=draw).tolist()) for length in (PROMPT, OTHER)
    )
    found = []
    for scheduled in ({first: 100}, {first: PROMPT - 104, second: OTHER - 6}, *[{first: 1, second: 1}] * 4):
        found += paged.step(scheduled).values()
    return torch.cat(found).float(), {choice.backend.name for choice in attention.choices.values()}


def errors(config: dict[str, Any], device: str, orders: list[tuple[str, ...]]) -> list[tuple[float, set[str]]]:
    """Of bf16, by orders of backends: the root mean square over that of the logits."""
    config = {**COMMON, **config}
    exact, _ = logits(config, torch.float32, device, ("torch_sdpa",))
    assert exact.std() > 0.1, "logits too small to tell a wrong model"
    found = []
    for order in orders:
        near, backends = logits(config, torch.bfloat16, device, order)
        found.append((float((near - exact).square().mean().sqrt() / exact.square().mean().sqrt()), backends))
    return found


@pytest.fixture
def gpu() -> Iterator[str]:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    chosen = dispatch.use(("triton",))
    assert chosen["rope_and_write"] == "triton", dispatch.absent()
    yield "cuda:0"
    dispatch.use(())


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_as_near_as_torch_s(family: str, gpu: str) -> None:
    (ours, backends), (torchs, _) = errors(FAMILIES[family], gpu, [cuda.attention_order(None), ("torch_sdpa",)])
    print(f"{family}: {ours:.5f} with {', '.join(sorted(backends))}; {torchs:.5f} with torch's attention")
    assert backends != {"torch_sdpa"}
    assert 0 < ours <= 2 * torchs


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_so_it_is_from_wide_pages(family: str, gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long prompts are read (attention/flash_triton.py), and not as these short ones would be."""
    flash = pytest.importorskip("octavo.attention.flash_triton")
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs Hopper")
    for name in ("LEAST_WIDE_TOKENS", "LEAST_QUERIES"):
        monkeypatch.setattr(flash, name, 1)
    copied = []
    copy = flash.copy_pages
    monkeypatch.setattr(flash, "copy_pages", lambda *given: copied.append(copy(*given)))
    (ours, _), (torchs, _) = errors(FAMILIES[family], gpu, [("flash_triton",), ("torch_sdpa",)])
    print(f"{family}: {ours:.5f} from wide pages; {torchs:.5f} with torch's attention")
    assert copied
    assert 0 < ours <= 2 * torchs


def test_every_architecture_with_attention_has_a_row() -> None:
    assert {config["architectures"][0] for config in FAMILIES.values()} == set(registry.architectures()) - NO_ATTENTION


def test_an_error_is_seen() -> None:
    """What the figures of the test above are worth: bf16 is off by some thousandths, and a wrong window by far more."""
    ((right, _),) = errors(FAMILIES["llama-64"], "cpu", [("torch_sdpa",)])
    assert 0.001 < right < 0.03
    exact, _ = logits({**COMMON, **FAMILIES["mistral"]}, torch.float32, "cpu", ("torch_sdpa",))
    wrong, _ = logits({**COMMON, **FAMILIES["mistral"], "sliding_window": 48}, torch.float32, "cpu", ("torch_sdpa",))
    assert float((wrong - exact).square().mean().sqrt() / exact.square().mean().sqrt()) > 3 * right
