"""Every family against transformers: the same random checkpoint, the same logits, however the tokens are computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from octavo.layers.attention import SelfAttention
from octavo.models import registry
from tests.models.harness import PagedModel, load_model, randomise, save

VOCAB = 97
NUM_TOKENS = 76
NUM_PROMPT = 70

SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def rope(rope_type: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 500.0, **values}}


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=32)
LONG = rope(
    "longrope",
    factor=4.0,
    original_max_position_embeddings=32,
    short_factor=[1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    long_factor=[1.0, 2.0, 3.0, 4.0, 6.0, 8.0],
)
SHORT = {"rope_parameters": {**LONG["rope_parameters"], "original_max_position_embeddings": 80}}

NO_ATTENTION = {key: SMALL[key] for key in SMALL if not key.endswith(("heads", "embeddings", "eps", "mediate_size"))}
MAMBA2 = {"num_heads": 6, "head_dim": 16, "state_size": 12}
BAMBA = {"attn_layer_indices": [1], "mamba_n_heads": 6, "mamba_d_state": 12}

# name: (class of transformers, changes to SMALL, max_model_len)
VARIANTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama": ("Llama", {}, 128),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}, 128),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}, 128),
    "llama-gelu-head": ("Llama", {"hidden_act": "gelu", "head_dim": 20, "num_key_value_heads": 1}, 128),
    "llama-linear": ("Llama", rope("linear", factor=3.0), 128),
    "llama-dynamic": ("Llama", {**rope("dynamic", factor=2.0), "max_position_embeddings": 40}, NUM_TOKENS),
    "llama-llama3": ("Llama", LLAMA3, 128),
    "llama-yarn": ("Llama", YARN, 128),
    "llama-longrope-long": ("Llama", LONG, 128),
    "llama-longrope-short": ("Llama", SHORT, 80),
    "mistral": ("Mistral", {"sliding_window": None}, 128),
    "mistral-window": ("Mistral", {"sliding_window": 21}, 128),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}, 128),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, 128),
    "qwen3": ("Qwen3", {"head_dim": 16}, 128),
    "qwen3-bias": ("Qwen3", {"head_dim": 32, "attention_bias": True}, 128),
    "gemma3": (
        "Gemma3",
        {
            "head_dim": 16,
            "num_hidden_layers": 4,
            "sliding_window": 19,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "query_pre_attn_scalar": 24,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
            },
        },
        128,
    ),
    "gemma3-soft-cap-untied": (
        "Gemma3",
        {
            "head_dim": 12,
            "sliding_window": 8,
            "sliding_window_pattern": 2,
            "final_logit_softcapping": 3.0,
            "tie_word_embeddings": False,
        },
        128,
    ),
    "mamba": ("Mamba", {"state_size": 5}, 128),
    "mamba-biases-untied": (
        "Mamba",
        {"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False, "conv_kernel": 3, "expand": 3},
        128,
    ),
    "mamba2": ("Mamba2", {**MAMBA2, "n_groups": 1, "use_bias": True}, 128),
    "mamba2-groups": ("Mamba2", {**MAMBA2, "n_groups": 2, "tie_word_embeddings": True, "use_conv_bias": False}, 128),
    "mamba2-limit": ("Mamba2", {**MAMBA2, "n_groups": 3, "time_step_limit": (0.5, 0.9), "conv_kernel": 5}, 128),
    "bamba": ("Bamba", BAMBA, 128),
    "bamba-all": (
        "Bamba",
        {**BAMBA, **LLAMA3, "mamba_n_groups": 2, "mamba_proj_bias": True, "mlp_bias": True, "attention_bias": True},
        128,
    ),
}


def config_of(name: str) -> transformers.PreTrainedConfig:
    family, changes, _ = VARIANTS[name]
    kind = "TextConfig" if family == "Gemma3" else "Config"
    small = NO_ATTENTION if family in ("Mamba", "Mamba2") else SMALL
    return getattr(transformers, f"{family}{kind}")(**{**small, **changes})


class Reference:
    """A checkpoint on disk, some texts, and transformers' logits of them."""

    def __init__(self, name: str, folder: Path) -> None:
        family, _, self.max_model_len = VARIANTS[name]
        config = config_of(name)
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        randomise(model)
        self.folder = save(model, folder)
        self.texts = torch.randint(0, VOCAB, (3, NUM_TOKENS))
        with torch.inference_mode():
            self.logits = model(self.texts).logits


@pytest.fixture(scope="module", params=VARIANTS)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("chunk", [1, 7, 64, NUM_PROMPT])
def test_logits_equal_those_of_transformers(reference: Reference, chunk: int) -> None:
    """Three rows: two prefilled by `chunk` tokens and then decoded, one that joins late and is mixed with decodes."""
    assert reference.logits.std() > 0.3, "logits too small to tell a wrong model"
    paged = PagedModel(load_model(reference.folder, reference.max_model_len), seed=chunk)
    rows = [paged.add(text.tolist()) for text in reference.texts[:2]]
    steps: dict[int, list[torch.Tensor]] = {row: [] for row in rows}

    def run(scheduled: dict[int, int]) -> None:
        for row, logits in paged.step(scheduled).items():
            steps[row].append(logits)

    for done in range(0, NUM_PROMPT, chunk):
        run({row: min(chunk, NUM_PROMPT - done) for row in rows})
    late = paged.add(reference.texts[2].tolist())
    steps[late] = []
    run({rows[0]: 1, late: NUM_PROMPT, rows[1]: 1})
    for _ in range(NUM_PROMPT + 1, NUM_TOKENS):
        run({late: 1, rows[1]: 1, rows[0]: 1})
    run({late: 1})
    for row, expected in zip([*rows, late], reference.logits, strict=True):
        torch.testing.assert_close(torch.cat(steps[row]), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "reference",
    ["llama", "mistral-window", "qwen3-bias", "gemma3", "gemma3-soft-cap-untied", "bamba", "mamba2"],
    indirect=True,
)
def test_the_last_layer_ends_with_the_last_tokens_where_no_others_are_wanted(
    reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention included. What lies in the caches then is the same. Layers that only mix have nothing to leave out."""
    paged = PagedModel(load_model(reference.folder, reference.max_model_len))
    family = type(paged.model).__name__
    first, second = (paged.add(text.tolist()) for text in reference.texts[:2])
    attended: list[int] = []  # tokens, by layer
    for layer in paged.model.modules():
        if isinstance(layer, SelfAttention):
            forward = layer.backend.forward

            def watch(q: torch.Tensor, *others: Any, forward: Any = forward) -> torch.Tensor:
                attended.append(len(q))
                return forward(q, *others)

            monkeypatch.setattr(layer.backend, "forward", watch)
            break  # there is one backend for all of them
    for counts in ({first: 40, second: 9}, {second: 20, first: 5}):
        attended.clear()
        for row, logits in paged.step(counts, only_last=True).items():
            at = paged.rows[row].num_computed - 1
            torch.testing.assert_close(logits[-1], reference.logits[row, at], atol=1e-4, rtol=0)
            assert logits[:-1].any() == (family == "Mamba2")
        ends_with_attention = family not in ("Bamba", "Mamba2")
        assert attended[:-1] == [sum(counts.values())] * (len(attended) - 1)
        assert attended[-1:] == ([2] if ends_with_attention else attended[:1])
    for row, logits in paged.step({first: 3, second: 8}).items():
        done = paged.rows[row].num_computed
        expected = reference.logits[row, done - len(logits) : done]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_every_architecture_has_a_variant() -> None:
    assert {f"{family}ForCausalLM" for family, _, _ in VARIANTS.values()} == set(registry.architectures())
