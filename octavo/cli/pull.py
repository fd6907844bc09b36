"""`octavo pull [MODEL]`: fetch a model ahead of time, so that later starts need no network."""

from __future__ import annotations

import argparse

from octavo.telemetry.log import setup_logging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="Hub id of the model. Unset: the demo model.")
    parser.add_argument("--revision", metavar="TEXT", help="Branch, tag or commit. Unset: the default branch.")


def main(args: argparse.Namespace) -> int:
    from octavo.config.checkpoint import pull

    setup_logging()
    print(pull(args.model, args.revision))
    return 0
