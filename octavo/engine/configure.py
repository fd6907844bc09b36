"""From options to a complete configuration: finds the checkpoint and the platform, then asks `config/resolve.py`.

Loads no weights and no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from octavo.config.checkpoint import Checkpoint, find_checkpoint
from octavo.config.engine_config import EngineConfig
from octavo.config.env import rest_idle_threads
from octavo.config.model_facts import model_facts
from octavo.config.options import Options
from octavo.config.read_ahead import files_to_read, read_ahead
from octavo.config.resolve import Resolved, resolve
from octavo.platforms.detect import detect
from octavo.platforms.platform import Platform


@dataclass(frozen=True)
class Configured:
    resolved: Resolved
    platform: Platform

    @property
    def config(self) -> EngineConfig:
        return self.resolved.config

    @property
    def checkpoint(self) -> Checkpoint:
        return self.config.model.checkpoint


def configure(options: Options, model: Mapping[str, Any] | None = None) -> Configured:
    """Fetches the model if it is not on this machine yet. `model` is the content of a config.json, in place of
    `options.model`. Raises ConfigurationError, CheckpointError."""
    platform = detect()
    if platform.has_block_kernels:
        rest_idle_threads()
    plugins = [f"{entry.module}:{entry.attr}" for entry in entry_points(group="octavo.logits_processors")]
    checkpoint = find_checkpoint(
        options.model if model is None else model,
        revision=options.revision,
        load_format=options.load_format,
        hf_overrides=options.hf_overrides,
        generation_config=options.generation_config,
    )
    if platform.shares_memory:
        read_ahead(files_to_read(checkpoint), platform.memory_info()[0])
    return Configured(resolve(options, checkpoint, platform.facts(), model_facts(checkpoint), plugins), platform)
