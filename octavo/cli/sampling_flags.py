"""Sampling parameters as flags, for the commands that generate."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from octavo.core.params import RequestOutputKind, SamplingParams

# A command line wants whole answers, and models that name no temperature are rarely good at 1.
_DEFAULTS: dict[str, Any] = {"max_tokens": None, "temperature": 0.7}

_NUMBERS: dict[str, tuple[type, str]] = {
    "max_tokens": (int, "Most tokens to generate (default: what the context allows)."),
    "temperature": (float, "0 takes the most likely token (default: the model's, or 0.7)."),
    "top_p": (float, "Keep the most likely tokens that have this probability together."),
    "top_k": (int, "Keep this many tokens; 0 keeps all."),
    "min_p": (float, "Drop tokens less likely than this share of the most likely."),
    "repetition_penalty": (float, "Above 1, tokens that were there already become less likely."),
    "presence_penalty": (float, "Taken from the logit of tokens that were generated already."),
    "frequency_penalty": (float, "The same, for each time that they were."),
    "min_tokens": (int, "No end before this many tokens."),
}


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that are not given leave nothing in the namespace. Random numbers follow the engine's --seed."""
    group = parser.add_argument_group("sampling")
    for name, (kind, text) in _NUMBERS.items():
        flag = "--" + name.replace("_", "-")
        group.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar="N" if kind is int else "X", help=text)
    group.add_argument(
        "--stop", action="append", default=argparse.SUPPRESS, metavar="TEXT", help="End before this text. Repeatable."
    )
    group.add_argument(
        "--ignore-eos", action="store_true", default=argparse.SUPPRESS, help="Go on after the end-of-text token."
    )


def sampling_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The parameters that a command line named, checked. Raises InvalidParameter."""
    names = (*_NUMBERS, "stop", "ignore_eos")
    settings = {name: value for name, value in vars(args).items() if name in names}
    streaming_params({}, settings)
    return settings


def streaming_params(model_defaults: Mapping[str, Any], settings: Mapping[str, Any]) -> SamplingParams:
    """What a request that is shown as it comes is sent with: `settings` over the model's defaults over ours."""
    return SamplingParams(**{**_DEFAULTS, **model_defaults, **settings}, output_kind=RequestOutputKind.DELTA)
