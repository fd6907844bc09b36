"""`octavo explain [MODEL]`, and `--explain` of every command that loads a model: what every choice came to, and what
the model needs and gets on this machine. Reads no weights."""

from __future__ import annotations

import argparse
from importlib import import_module

from octavo.cli.arguments import add_engine_arguments, options_from
from octavo.config.resolve import explain
from octavo.engine.configure import configure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser, model="positional")


def main(args: argparse.Namespace) -> int:
    configured = configure(options_from(args))
    # the model's own lines say which backend, and need torch
    print(explain([reason for reason in configured.resolved.reasons if reason.option != "attention_backend"]))
    print(flush=True)
    explain_model = import_module("octavo.worker.explain").explain_model
    print(explain(explain_model(configured.config, configured.platform)))
    return 0
