"""The text of docs/reference/, made from what the code says of itself, so that it cannot be wrong."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from octavo.cli.arguments import default_text, metavar
from octavo.cli.main import COMMANDS, make_parser
from octavo.config.env import VARIABLES
from octavo.config.options import OptionRow, option_rows
from octavo.config.serve_options import serve_rows

_MADE = "<!-- Made by scripts/gendocs: change the code, not this page. -->"


def options_page() -> str:
    lines = [
        "# Options",
        "",
        _MADE,
        "",
        "`LLM(model, name=value)` and `AsyncEngine` take them by name, the command line as flags. What is left unset "
        "is chosen from the model and the machine; `--explain` prints each choice with its reason.",
    ]
    return "\n".join(lines + _tables(option_rows().values())) + "\n"


def serve_page() -> str:
    lines = [
        "# Options of serving",
        "",
        _MADE,
        "",
        "`octavo serve` takes them as flags, beside the engine's [options](options.md), and from a file: "
        "`--config FILE.yaml`.",
    ]
    return "\n".join(lines + _tables(serve_rows().values())) + "\n"


def _tables(rows: Iterable[OptionRow]) -> list[str]:
    rows, lines = list(rows), []
    for group in dict.fromkeys(row.group for row in rows):
        lines += ["", f"## {group.capitalize()}", "", "| option | values | default | meaning |", "|---|---|---|---|"]
        lines += [_option_line(row) for row in rows if row.group == group]
    return lines


def environment_page() -> str:
    lines = ["# Environment variables", "", _MADE, "", "| variable | default | meaning |", "|---|---|---|"]
    for variable in VARIABLES:
        default = f"`{variable.default}`" if variable.default else ""
        lines.append(f"| `{variable.name}` | {default} | {_cell(variable.help)} |")
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    lines = [
        "# Command line",
        "",
        _MADE,
        "",
        "Logs go to stderr, results to stdout. Exit status: 0, 1 where it failed,",
    ]
    lines += [
        "2 where it was asked wrongly, 130 after Ctrl-C. JSON options can be given by parts: `--hf-overrides.a.b=1`."
    ]
    for name, command in COMMANDS.items():
        lines += ["", f"## octavo {name}", "", command.text]
        parser = make_parser(name, command.load())
        lines += _arguments(parser, f"octavo {name}")
    return "\n".join(lines) + "\n"


PAGES = {
    "options.md": options_page,
    "serve.md": serve_page,
    "environment.md": environment_page,
    "cli.md": commands_page,
}


def _arguments(parser: argparse.ArgumentParser, prog: str) -> list[str]:
    """A table of a parser's own flags, then those of its subcommands. Engine options are linked, not repeated."""
    rows, lines, takes_options, takes_serve_options = [], [], False, False
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, inner in action.choices.items():
                lines += ["", f"### {prog} {name}", "", texts.get(name, ""), *_arguments(inner, f"{prog} {name}")]
            continue
        if isinstance(action, argparse._HelpAction):
            continue
        if action.dest in option_rows() and action.option_strings:
            takes_options = True
            continue
        if prog == "octavo serve" and action.dest in serve_rows():
            takes_serve_options = True
            continue
        rows.append(_argument_line(action))
    table = ["", "| argument | meaning |", "|---|---|", *rows] if rows else []
    link = ["", "Also takes every [option](options.md) as a flag."] if takes_options else []
    if takes_serve_options:
        link[-1] = "Also takes every [option](options.md) and every [option of serving](serve.md) as a flag."
    return table + link + lines


def _argument_line(action: argparse.Action) -> str:
    value = (
        ""
        if action.nargs == 0
        else str(action.metavar or (action.dest.upper() if action.option_strings else action.dest))
    )
    if action.choices is not None and not action.metavar:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    flags = ", ".join(f"`{' '.join(filter(None, (flag, value)))}`" for flag in action.option_strings) or f"`{value}`"
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
    return f"| {_cell(flags)} | {_cell(text)} |"


def _option_line(row: OptionRow) -> str:
    default = default_text(row)
    flags = f"`{row.name}`"
    values = "on, off" if row.kind == "switch" else f"`{metavar(row)}`"
    return f"| {flags} | {_cell(values)} | {f'`{default}`' if default else ''} | {_cell(row.text)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
