"""What a model file reads of config.json: dataclass fields that know their keys. No other place reads those keys."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Self, dataclass_transform

from octavo.errors import CheckpointError, UnsupportedModel
from octavo.layers.rope import RopeFields

REQUIRED: Any = object()


class Config:
    """config.json, with errors that name the key. A value of null counts as absent, as it does in transformers."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        names = values.get("architectures") or ["this model"]
        self.architecture = str(names[0])

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def need(self, *keys: str) -> Any:
        """The first of `keys` that is there."""
        for key in keys:
            if self.values.get(key) is not None:
                return self.values[key]
        raise CheckpointError(f"config.json of {self.architecture} has no {' or '.join(map(repr, keys))}")

    def count(self, key: str, default: int) -> int:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.wrong(key, value, "a whole number above 0")
        return value

    def wrong(self, key: str, value: Any, limit: str) -> CheckpointError:
        return CheckpointError(f"config.json of {self.architecture}: {key} must be {limit}, got {value!r}")


def from_hf(
    *keys: str,
    default: Any | Callable[[Config], Any] = REQUIRED,
    read: Callable[[Config], Any] | None = None,
) -> Any:
    """A field that takes the first of `keys` that config.json has, else `default` (a value, or a function of the
    Config); or, with `read`, whatever that function makes of the Config."""
    return dataclasses.field(metadata={"keys": keys, "default": default, "read": read})


def _num_kv_heads(config: Config) -> int:
    return config.need("num_attention_heads")


def _head_dim(config: Config) -> int:
    return config.need("hidden_size") // config.need("num_attention_heads")


def rope_fields(config: Config, layer_type: str | None = None, theta: float = 10000.0) -> RopeFields:
    """Reads `rope_parameters` (flat, or by layer type), or the older `rope_theta` and `rope_scaling`."""
    values: Mapping[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if layer_type is not None and isinstance(values.get(layer_type), Mapping):
        values = values[layer_type]

    def number(key: str, default: float | None) -> Any:
        value = values.get(key)
        value = default if value is None else value
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise config.wrong(f"rope {key}", value, "a number")
        return value

    rope_type = values.get("rope_type") or values.get("type") or "default"
    max_positions = config.need("max_position_embeddings")
    return RopeFields(
        theta=number("rope_theta", config.get("rope_theta", theta)),
        rope_type="longrope" if rope_type == "su" else rope_type,
        partial_rotary_factor=number("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)),
        max_position_embeddings=max_positions,
        # a value outside the rope dictionary is the checkpoint's own (Phi-3), and wins
        original_max_position_embeddings=config.get("original_max_position_embeddings")
        or number("original_max_position_embeddings", max_positions),
        factor=number("factor", None),
        attention_factor=number("attention_factor", None),
        low_freq_factor=number("low_freq_factor", 1.0),
        high_freq_factor=number("high_freq_factor", 4.0),
        beta_fast=number("beta_fast", 32.0),
        beta_slow=number("beta_slow", 1.0),
        mscale=number("mscale", None),
        mscale_all_dim=number("mscale_all_dim", None),
        truncate=bool(values.get("truncate", True)),
        short_factor=tuple(values.get("short_factor") or ()),
        long_factor=tuple(values.get("long_factor") or ()),
    )


def windows_by_layer(config: Config, default_type: Callable[[int], str], window: int | None) -> tuple[int | None, ...]:
    """The window of each layer, by `layer_types` where config.json has it, else by `default_type(layer)`."""
    num_layers = config.need("num_hidden_layers")
    layer_types = config.get("layer_types") or [default_type(layer) for layer in range(num_layers)]
    if len(layer_types) != num_layers:
        raise config.wrong("layer_types", layer_types, f"a list of num_hidden_layers = {num_layers} names")
    for name in layer_types:
        if name not in ("full_attention", "sliding_attention"):
            raise UnsupportedModel(
                f"{config.architecture}: layer type {name!r} is not full_attention or sliding_attention"
            )
    return tuple(window if name == "sliding_attention" else None for name in layer_types)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(from_hf,))
class StackFields:
    """What the shell of a decoder has, whatever its blocks are made of (layers/stack.py)."""

    vocab_size: int = from_hf("vocab_size")
    hidden_size: int = from_hf("hidden_size")
    num_layers: int = from_hf("num_hidden_layers")
    norm_eps: float = from_hf("rms_norm_eps", default=1e-6)
    tie_word_embeddings: bool = from_hf("tie_word_embeddings", default=False)
    embed_scale: float | None = from_hf(default=None)
    logit_soft_cap: float | None = from_hf(default=None)

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Reads config.json. CheckpointError names a key that is missing or of another type."""
        config = Config(values)
        types_by_name = typing.get_type_hints(cls)
        read: dict[str, Any] = {}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            read[field.name] = _value(config, field, types_by_name[field.name])
        return cls(**read)


dataclasses.dataclass(frozen=True, kw_only=True)(StackFields)


class ModelFields(StackFields):
    """What a decoder of attention and MLP has. A family adds fields, or gives one of these other keys or another
    default."""

    intermediate_size: int = from_hf("intermediate_size")
    num_heads: int = from_hf("num_attention_heads")
    num_kv_heads: int = from_hf("num_key_value_heads", default=_num_kv_heads)
    head_dim: int = from_hf("head_dim", default=_head_dim)
    activation: str = from_hf("hidden_act", default="silu")
    max_position_embeddings: int = from_hf("max_position_embeddings")
    rope: RopeFields = from_hf(read=rope_fields)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        fields = super().read(values)
        if fields.num_heads % fields.num_kv_heads:
            limit = f"a multiple of num_key_value_heads = {fields.num_kv_heads}"
            raise Config(values).wrong("num_attention_heads", fields.num_heads, limit)
        return fields


def _value(config: Config, field: dataclasses.Field[Any], annotation: Any) -> Any:
    keys, default, read = (field.metadata[name] for name in ("keys", "default", "read"))
    if read is not None:
        return read(config)
    for key in keys:
        value = config.get(key)
        if value is not None:
            return _checked(config, key, value, annotation)
    if default is REQUIRED:
        return config.need(*keys)
    return default(config) if callable(default) else default


def _checked(config: Config, key: str, value: Any, annotation: Any) -> Any:
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    if int in options and float not in options:  # every whole number read here is a count
        config.count(key, value)
    elif float in options:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise config.wrong(key, value, "a number")
    elif bool in options and not isinstance(value, bool):
        raise config.wrong(key, value, "true or false")
    elif str in options and not isinstance(value, str):
        raise config.wrong(key, value, "a string")
    return value
