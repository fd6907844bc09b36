"""The `octavo` command: finds the subcommand, parses its flags, turns errors into one line and an exit status.

A subcommand is a module with `add_arguments(parser) -> None` and `main(args) -> int` (the exit status), and perhaps
`complete(args) -> args`, which adds what else was said, such as in a file. It is imported
only when it is named, and imports nothing heavy (torch, numpy) at its top, so that help appears at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import octavo
from octavo.cli.arguments import Parser, UsageError, did_you_mean, print_error
from octavo.errors import ConfigurationError, OctavoError


@dataclass(frozen=True)
class Command:
    module: str
    text: str

    def load(self) -> Any:
        return import_module(self.module)


COMMANDS = {
    "serve": Command("octavo.cli.serve", "Answer over HTTP, through OpenAI's and Anthropic's APIs."),
    "run": Command("octavo.cli.run", "Answer one prompt and stop."),
    "chat": Command("octavo.cli.chat", "Talk with a model in the terminal."),
    "bench": Command("octavo.cli.bench", "Measure latency, throughput or start-up."),
    "explain": Command("octavo.cli.explain", "Show what would be chosen for a model, why, and what it would cost."),
    "pull": Command("octavo.cli.pull", "Fetch a model ahead of time."),
    "doctor": Command("octavo.cli.doctor", "Show what this machine offers and what is missing."),
}

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line. Returns the exit status: 0, 1 (it failed), 2 (it was asked wrongly), 130 (Ctrl-C)."""
    try:
        status = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except UsageError as error:
        print_error(f"{error} (see {error.command} --help)")
        return USAGE
    except ConfigurationError as error:
        print_error(str(error))
        return USAGE
    except OctavoError as error:
        print_error(str(error))
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Who read our output has gone. Keep the interpreter from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        if len(argv) > 1 and argv[1] in COMMANDS:
            return _dispatch([argv[1], "--help"])
        print(overview())
        return 0
    if argv[0] in ("-V", "--version", "version"):
        print(f"octavo {octavo.__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        kind = "flag" if name.startswith("-") else "command"
        known = ["--help", "--version"] if kind == "flag" else list(COMMANDS)
        raise UsageError(f"unknown {kind} {name}{did_you_mean(name, known)}", "octavo")
    module = COMMANDS[name].load()
    parser = make_parser(name, module)
    try:
        args = parser.parse(argv[1:])
    except SystemExit as exit_:  # argparse printed help
        return exit_.code if isinstance(exit_.code, int) else 0
    if hasattr(module, "complete"):
        args = module.complete(args)
    if getattr(args, "explain", False):
        return _explain(args)
    status: int = module.main(args)
    return status


def make_parser(name: str, module: Any) -> Parser:
    parser = Parser(prog=f"octavo {name}", description=COMMANDS[name].text)
    module.add_arguments(parser)
    return parser


def _explain(args: argparse.Namespace) -> int:
    status: int = import_module("octavo.cli.explain").main(args)
    return status


def overview() -> str:
    """What `octavo --help` prints."""
    lines = [f"  {name:<10}{command.text}" for name, command in COMMANDS.items()]
    return (
        textwrap.dedent(
            """\
        octavo: an inference engine for language models

        usage: octavo COMMAND [...]

        {commands}

          --version  Print the version.
          --help     Print this; octavo COMMAND --help prints a command's flags.

        Try: octavo run "Why is the sky blue?"
        """
        )
        .format(commands="\n".join(lines).lstrip("\n"))
        .rstrip()
    )


if __name__ == "__main__":
    sys.exit(main())
