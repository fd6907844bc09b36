"""Mamba-2: Mamba with the second mixer."""

from __future__ import annotations

from typing import Any

from octavo.layers.build import BuildContext
from octavo.layers.fields import Config, from_hf
from octavo.layers.mamba import Mamba2Mixer, Mamba2Shape
from octavo.layers.stack import CausalLM
from octavo.models.mamba import Mamba, PureMambaBlock, PureMambaFields

# Of Mamba2Shape: the key of config.json, and the default of transformers.
KEYS: dict[str, tuple[str, int]] = {
    "num_heads": ("num_heads", 128),
    "head_dim": ("head_dim", 64),
    "state_size": ("state_size", 128),
    "num_groups": ("n_groups", 8),
    "kernel_size": ("conv_kernel", 4),
}


def read_shape(config: Config, keys: dict[str, tuple[str, int]] = KEYS, expand: str = "expand") -> Mamba2Shape:
    """CheckpointError where sizes contradict each other."""
    counts = {name: config.count(key, default) for name, (key, default) in keys.items()}
    shape = Mamba2Shape(**counts, time_step_limit=time_step_limit(config))
    inner_size, heads_key = config.get(expand, 2) * config.need("hidden_size"), keys["num_heads"][0]
    if shape.inner_size != inner_size:
        limit = f"{expand} * hidden_size / {keys['head_dim'][0]} = {inner_size} / {shape.head_dim}"
        raise config.wrong(heads_key, shape.num_heads, limit)
    if shape.num_heads % shape.num_groups:
        limit = f"a multiple of {keys['num_groups'][0]} = {shape.num_groups}"
        raise config.wrong(heads_key, shape.num_heads, limit)
    return shape


def time_step_limit(config: Config) -> tuple[float, float]:
    """Two numbers; transformers writes an infinite one as {"__float__": "Infinity"}."""

    def number(value: Any) -> float:
        return float(value["__float__"] if isinstance(value, dict) else value)

    found = config.get("time_step_limit", (0.0, float("inf")))
    try:
        low, high = map(number, found)
    except (TypeError, ValueError, KeyError):
        raise config.wrong("time_step_limit", found, "two numbers") from None
    return low, high


class Mamba2Fields(PureMambaFields):
    shape: Mamba2Shape = from_hf(read=read_shape)


class Mamba2Block(PureMambaBlock):
    def __init__(self, f: Mamba2Fields, layer: int, build: BuildContext) -> None:
        super().__init__(f, build)
        self.mixer = Mamba2Mixer(build, f.hidden_size, f.shape, f.norm_eps, bias=f.bias, conv_bias=f.conv_bias)


class Mamba2(CausalLM):
    fields, block, norm, weights = Mamba2Fields, Mamba2Block, Mamba.norm, Mamba.weights
