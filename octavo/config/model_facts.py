"""What a checkpoint's config.json says of a model, as far as options depend on it. Reads no weights, needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from octavo.core.facts import ModelFacts
from octavo.errors import CheckpointError

if TYPE_CHECKING:
    from octavo.config.checkpoint import Checkpoint

# The names under which families store their longest context.
_POSITION_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
_UNKNOWN_POSITIONS = 2048
_RECURRENT_KEYS = ("state_size", "ssm_state_size", "mamba_d_state")
# A model of recurrent layers alone has no positions and reads any length. This many tokens are allowed for when nobody
# says more: each row of the token table takes 128 KiB for them.
_RECURRENT_CONTEXT = 32_768
_SCALED_ALREADY = ("su", "longrope", "llama3", "default", "mrope")  # their max_position_embeddings is the long one
_FLOAT16_OVERFLOWS = ("gemma2", "gemma3", "gemma3_text", "glm4", "plamo2")  # activations pass 65,504


def model_facts(checkpoint: Checkpoint) -> ModelFacts:
    """Raises CheckpointError for a config that lacks what every model has."""
    config = text_config(checkpoint.config)
    vocab_size = config.get("vocab_size")
    if not isinstance(vocab_size, int) or vocab_size < 1:
        raise CheckpointError(
            f"{checkpoint.name}: config.json: vocab_size must be a positive number, got {vocab_size!r}"
        )
    is_recurrent = any(config.get(key) is not None for key in _RECURRENT_KEYS)
    has_positions = not is_recurrent or config.get("num_attention_heads") is not None
    max_positions, reason = _max_positions(config, checkpoint.name, has_positions)
    named = None
    if not config.get("quantization_config"):  # else a type to compute in is a suggestion, and the machine knows better
        named = checkpoint.dtype or config.get("dtype") or config.get("torch_dtype")
    return ModelFacts(
        architecture=checkpoint.architecture,
        vocab_size=vocab_size,
        max_positions=max_positions,
        max_positions_reason=reason,
        has_positions=has_positions,
        is_recurrent=is_recurrent,
        dtype=str(named).removeprefix("torch.") if named else None,
        unsafe_dtypes=("float16",) if config.get("model_type") in _FLOAT16_OVERFLOWS else (),
    )


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a config, which multimodal ones nest."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _max_positions(config: Mapping[str, Any], name: str, has_positions: bool) -> tuple[int, str]:
    found = {key: config[key] for key in _POSITION_KEYS if isinstance(config.get(key), int) and config[key] > 0}
    if not found and not has_positions:
        return _RECURRENT_CONTEXT, "a default: a model without positions has no limit, and takes any number"
    if not found:
        return _UNKNOWN_POSITIONS, "config.json does not say how long a context may be"
    key = min(found, key=lambda key: found[key])
    positions, reason = found[key], f"{key} of the model's config"
    # Gemma 3 stores the length after scaling.
    if "gemma3" in str(config.get("model_type", "")):
        return positions, reason
    factor = 1.0
    for rope in _rope_parameters(config):
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind in _SCALED_ALREADY:
            continue
        value = rope.get("factor", factor)
        if not isinstance(value, int | float) or value <= 0:
            raise CheckpointError(f"{name}: config.json: rope factor must be a positive number, got {value!r}")
        factor = float(value)
        original = rope.get("original_max_position_embeddings")
        if kind == "yarn" and isinstance(original, int):
            positions, reason = original, "original_max_position_embeddings of the model's config"
    if factor != 1.0:
        positions, reason = int(positions * factor), f"{reason} ({positions:,}) times the rope factor {factor:g}"
    return positions, reason


def _rope_parameters(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rope settings of all layer kinds, from `rope_parameters` or its older name `rope_scaling`."""
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, Mapping):
        return []
    nested = [part for part in rope.values() if isinstance(part, Mapping)]
    return nested or [rope]
