"""Failures on demand, for octavo's own tests: a model that fails where a token id says so. Off unless the environment
variable OCTAVO_TEST_FAULTS is set."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from octavo.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

    from octavo.attention.backend import StepContext
    from octavo.runner.model import Model

_log = logging.getLogger(__name__)
_KINDS = ("raise", "nan", "exit", "hang", "delay")


def read_faults(text: str) -> dict[str, float]:
    """`raise=7,exit=9,delay=0.01` as a dictionary. Raises ConfigurationError."""
    faults = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            if name not in _KINDS:
                raise ValueError
            faults[name] = float(value) if name == "delay" else int(value)
        except ValueError:
            limit = "raise=ID, nan=ID, exit=ID, hang=ID or delay=SECONDS, with commas between"
            raise ConfigurationError(f"OCTAVO_TEST_FAULTS must be {limit}, got {part!r}") from None
    return faults


class FaultyModel:
    """A model that, in the forward, raises at one token id of a prompt, makes the state of another NaN, ends the
    process at a third and never returns at a fourth."""

    def __init__(self, model: Model, faults: Mapping[str, float]) -> None:
        _log.warning("the model fails on purpose: %s", dict(faults))
        self._model, self._faults = model, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, input_ids: torch.Tensor, step: StepContext) -> torch.Tensor:
        faults = self._faults
        if "delay" in faults:
            time.sleep(faults["delay"])
        # only rows with several tokens, which are prompts: what a model happens to say is no fault
        query_lens = input_ids.new_tensor(step.query_lens)
        is_prompt = (query_lens > 1).repeat_interleave(query_lens)
        at = {kind: is_prompt & (input_ids == token_id) for kind, token_id in faults.items() if kind != "delay"}
        while "hang" in at and bool(at["hang"].any()):
            time.sleep(60)
        if "exit" in at and bool(at["exit"].any()):
            os._exit(70)
        if "raise" in at and bool(at["raise"].any()):
            raise RuntimeError(f"token {faults['raise']} is in a prompt (OCTAVO_TEST_FAULTS)")
        hidden = self._model.forward(input_ids, step)
        if "nan" in at:
            hidden[at["nan"]] = math.nan
        return hidden
