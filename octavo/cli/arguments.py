"""How every subcommand parses: flags made from the option table, near misses named, JSON options by parts."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from octavo.config.options import OptionRow, Options, make_options, option_rows
from octavo.errors import ConfigurationError

_GROUP_TITLES = {
    "model": "model",
    "text": "text and sampling defaults",
    "sampling": "sampling",
    "cache": "cache",
    "scheduler": "scheduler",
    "machine": "machine",
    "listen": "where to listen",
    "access": "who may ask",
    "models": "what is served",
    "answers": "answers",
    "operation": "operation",
}


class UsageError(Exception):
    """The command line itself is wrong: exit status 2."""

    def __init__(self, message: str, command: str) -> None:
        super().__init__(message)
        self.command = command


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError, takes whole flags only and names the nearest for an unknown one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", lambda prog: argparse.HelpFormatter(prog, max_help_position=32))
        super().__init__(*args, **kwargs)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Raises UsageError, also for arguments that are left over."""
        args, extra = self.parse_known_args(join_json_parts(argv, self.json_flags()))
        for argument in extra:
            if argument.startswith("-") and len(argument) > 1:
                flag = argument.partition("=")[0]
                self.error(f"unknown flag {flag}{did_you_mean(flag, self.flags())}")
            self.error(f"unexpected argument {argument!r}")
        return args

    def flags(self) -> list[str]:
        return list(self._option_string_actions)

    def json_flags(self) -> set[str]:
        return {flag for flag, action in self._option_string_actions.items() if getattr(action, "is_json", False)}

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.prog)


class _OptionAction(argparse.Action):
    """Checks a value against its row of the option table."""

    def __init__(self, *args: Any, row: OptionRow, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.row, self.is_json = row, row.kind == "json"

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if self.nargs == 0:
            setattr(namespace, self.dest, not (option_string or "").startswith("--no-"))
            return
        try:
            if self.row.kind == "texts":
                parts = [part for value in values for part in self.row.parse(value)]
                setattr(namespace, self.dest, [*getattr(namespace, self.dest, []), *parts])
                return
            setattr(namespace, self.dest, self.row.parse(values))
        except ConfigurationError as error:
            parser.error(str(error).replace(self.row.name, option_string or self.row.name, 1))


def add_engine_arguments(
    parser: argparse.ArgumentParser, *, model: str = "flag", leave_out: Iterable[str] = ()
) -> None:
    """Every option as a flag, and --explain. `model` is "flag" (--model M, -m M) or "positional" ([MODEL]).
    Flags that are not given leave nothing in the namespace: see `options_from`."""
    left_out = set(leave_out)
    add_row_arguments(parser, {name: row for name, row in option_rows().items() if name not in left_out}, model)
    parser.add_argument(
        "--explain", action="store_true", help="Print what every choice came to, and why, and stop before loading."
    )


def add_row_arguments(parser: argparse.ArgumentParser, rows: Mapping[str, OptionRow], model: str = "flag") -> None:
    """The rows of an option table as flags, by group."""
    groups = {
        group: parser.add_argument_group(_GROUP_TITLES[group])
        for group in dict.fromkeys(row.group for row in rows.values())
    }
    for name, row in rows.items():
        if name == "model" and model == "positional":
            parser.add_argument(
                "model",
                nargs="?",
                action=_OptionAction,
                row=row,
                default=argparse.SUPPRESS,
                metavar="MODEL",
                help=row.text,
            )
            continue
        flags = [row.flag] if name != "model" else ["-m", row.flag]
        settings: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": help_text(row)}
        if row.kind == "switch":
            flags.append("--no-" + row.flag[2:])
            settings["nargs"] = 0
        else:
            settings["metavar"] = metavar(row)
            if row.kind == "texts":
                settings["nargs"] = "+"
        groups[row.group].add_argument(*flags, action=_OptionAction, row=row, **settings)


def options_from(args: argparse.Namespace) -> Options:
    """The options that a command line named. Raises ConfigurationError."""
    names = option_rows()
    return make_options({name: value for name, value in vars(args).items() if name in names})


def join_json_parts(argv: Sequence[str], json_flags: Iterable[str]) -> list[str]:
    """`--flag.a.b=1` (or `--flag.a.b 1`) becomes `--flag {"a": {"b": 1}}`, merged over all its parts; a value that is
    not JSON is a string. Underscores in flags become hyphens. Nothing after `--` is touched."""
    flags = set(json_flags)
    merged: dict[str, dict[str, Any]] = {}
    result: list[str] = []
    position = 0
    while position < len(argv):
        argument = argv[position]
        position += 1
        if argument == "--":
            result += [argument, *argv[position:]]
            break
        head, equals, value = argument.partition("=")
        flag, dot, path = head.partition(".")
        if not head.startswith("--"):
            result.append(argument)
            continue
        flag = "--" + flag[2:].replace("_", "-")
        if flag not in flags:
            result.append(flag + dot + path + equals + value)
            continue
        if not equals:
            if position == len(argv):
                raise UsageError(f"{head} needs a value", "octavo")
            value = argv[position]
            position += 1
        content = _json_or_text(value)
        if dot:
            for key in reversed(path.split(".")):
                content = {key: content}
        elif not isinstance(content, dict):
            result += [f"{flag}={value}"]  # the parser says what is wrong
            continue
        _merge(merged.setdefault(flag, {}), content)
    return [f"{flag}={json.dumps(content)}" for flag, content in merged.items()] + result


def did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def metavar(row: OptionRow) -> str:
    if row.kind == "choice":
        return "{" + ",".join(row.choices) + "}"
    words = {"integer": "N", "number": "X", "bytes": "SIZE", "tokens": "TOKENS", "context": "TOKENS", "json": "JSON"}
    return words.get(row.kind, "MODEL" if row.name == "model" else "TEXT")


def default_text(row: OptionRow) -> str:
    """The default in words, empty where the option's text tells it."""
    if row.default is None or row.default == {} or row.default == []:
        return ""
    if isinstance(row.default, bool):
        return "on" if row.default else "off"
    if isinstance(row.default, list):
        return " ".join(row.default)
    return str(row.default)


def help_text(row: OptionRow) -> str:
    default = default_text(row)
    return (row.text + (f" (default: {default})" if default else "")).replace("%", "%%")


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        inner = into.get(key)
        if isinstance(inner, dict) and isinstance(value, dict):
            _merge(inner, value)
        else:
            into[key] = value


def print_error(message: str) -> None:
    """One line on stderr."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
