"""`--explain`: what every choice came to, and why, without loading the model."""

from __future__ import annotations

import argparse

from octavo.cli.arguments import options_from
from octavo.config.resolve import explain
from octavo.engine.configure import configure


def main(args: argparse.Namespace) -> int:
    print(explain(configure(options_from(args)).resolved.reasons))
    return 0
