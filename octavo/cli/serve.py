"""`octavo serve [MODEL]`: answers over HTTP. It listens first and loads the model then."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from octavo.cli.arguments import add_engine_arguments, add_row_arguments, options_from
from octavo.config.options import OptionRow, check_values, option_rows
from octavo.config.serve_options import make_serve_options, serve_rows
from octavo.errors import ConfigurationError
from octavo.telemetry.log import setup_logging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="Flags and their values, as a YAML mapping; the command line goes first."
    )
    add_row_arguments(parser, serve_rows())
    add_engine_arguments(parser, model="positional")


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """Adds what a --config file says and the command line does not. Raises ConfigurationError."""
    if args.config is not None:
        for name, value in read_config(Path(args.config)).items():
            if not hasattr(args, name):
                setattr(args, name, value)
    return args


def main(args: argparse.Namespace) -> int:
    options = options_from(args)
    serve_options = make_serve_options({name: value for name, value in vars(args).items() if name in serve_rows()})
    setup_logging("INFO")
    status: int = import_module("octavo.server.entry").serve(options, serve_options)
    return status


def read_config(path: Path) -> dict[str, Any]:
    """The options in a file, checked, by name. Raises ConfigurationError."""
    yaml = import_module("yaml")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"config: {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"config: {path} must be a mapping of flags to values, such as port: 8000")
    rows: dict[str, OptionRow] = {**option_rows(), **serve_rows()}
    named = {str(name).removeprefix("--").replace("-", "_"): value for name, value in content.items()}
    values = {
        name: [value] if name in rows and rows[name].kind == "texts" and isinstance(value, str) else value
        for name, value in named.items()
    }
    try:
        return check_values(rows, values)
    except ConfigurationError as error:
        raise ConfigurationError(f"config: {path}: {error}") from None
