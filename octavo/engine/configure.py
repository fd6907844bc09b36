"""From options to a complete configuration: finds the checkpoint and the platform, then asks `config/resolve.py`."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.config.checkpoint import find_checkpoint
from octavo.config.model_facts import model_facts
from octavo.config.options import Options
from octavo.config.resolve import Resolved, resolve
from octavo.platforms.detect import detect
from octavo.platforms.platform import Platform


@dataclass(frozen=True)
class Configured:
    resolved: Resolved
    platform: Platform


def configure(options: Options) -> Configured:
    """Fetches the model if it is not on this machine yet. Raises ConfigurationError, CheckpointError. No torch."""
    platform = detect()
    checkpoint = find_checkpoint(
        options.model,
        revision=options.revision,
        load_format=options.load_format,
        hf_overrides=options.hf_overrides,
        generation_config=options.generation_config,
    )
    return Configured(resolve(options, checkpoint, platform.facts(), model_facts(checkpoint)), platform)
