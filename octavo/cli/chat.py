"""`octavo chat`: a conversation in the terminal. Lines from a pipe work too: answers on stdout, the rest on stderr."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from octavo.cli.arguments import add_engine_arguments, did_you_mean, options_from
from octavo.cli.run import note, open_engine
from octavo.cli.sampling_flags import add_sampling_arguments, sampling_settings, streaming_params
from octavo.core.params import SamplingParams
from octavo.errors import EngineDead, InvalidRequest, OctavoError
from octavo.telemetry.log import setup_logging

if TYPE_CHECKING:
    from octavo.engine.async_engine import AsyncEngine

HELP = """\
/help               this
/clear              forget the conversation, keep the system message
/system TEXT        set the system message; without TEXT, drop it
/set NAME VALUE     set a sampling parameter; without VALUE, back to its default; without NAME, show all
/save FILE          write the conversation as JSON
/load FILE          read it back
/regenerate         answer the last message again
/quit               leave (also Ctrl-D)
Ctrl-C stops an answer."""

_NOT_FOR_CHAT = ("n", "output_kind", "detokenize", "logprobs")


class Talker(Protocol):
    """Who answers."""

    def answer(
        self, messages: list[dict[str, str]], settings: Mapping[str, Any], write: Callable[[str], None]
    ) -> tuple[str, bool]:
        """Writes the answer as it comes. Returns it, and whether it was stopped by Ctrl-C. Raises OctavoError."""


class Chat:
    """A conversation and its commands. `write` shows answers, `tell` everything else."""

    def __init__(
        self,
        talker: Talker,
        settings: Mapping[str, Any],
        system: str | None,
        write: Callable[[str], None],
        tell: Callable[[str], None],
    ) -> None:
        self._talker, self._write, self._tell = talker, write, tell
        self.settings = dict(settings)
        self.system = system
        self.messages: list[dict[str, str]] = []  # without the system message
        self._commands: dict[str, Callable[[str], bool]] = {
            "/help": self._help,
            "/clear": self._clear,
            "/system": self._set_system,
            "/set": self._set,
            "/save": self._save,
            "/load": self._load,
            "/regenerate": self._regenerate,
            "/quit": lambda rest: False,
            "/exit": lambda rest: False,
        }

    @property
    def commands(self) -> list[str]:
        return list(self._commands)

    def take(self, line: str) -> bool:
        """A line from the user. False when it ends the conversation."""
        line = line.strip()
        if not line:
            return True
        if not line.startswith("/"):
            self.messages.append({"role": "user", "content": line})
            self._answer()
            return True
        name, _, rest = line.partition(" ")
        command = self._commands.get(name)
        if command is None:
            self._tell(f"there is no command {name}{did_you_mean(name, self._commands) or '; /help lists them'}")
            return True
        return command(rest.strip())

    def _answer(self) -> None:
        """Answers the last message. One that cannot be answered is taken back."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        try:
            text, stopped = self._talker.answer([*system, *self.messages], self.settings, self._write)
        except EngineDead:
            raise
        except OctavoError as error:
            self.messages.pop()
            self._tell(f"error: {error}")
            return
        self._write("\n")
        if stopped:
            self._tell("(stopped)")
        if text or not stopped:
            self.messages.append({"role": "assistant", "content": text})

    def _help(self, rest: str) -> bool:
        self._tell(HELP)
        return True

    def _clear(self, rest: str) -> bool:
        self.messages.clear()
        self._tell("forgotten")
        return True

    def _set_system(self, rest: str) -> bool:
        self.system = rest or None
        self._tell("system message set" if rest else "no system message")
        return True

    def _set(self, rest: str) -> bool:
        name, _, value = rest.partition(" ")
        if not name:
            shown = ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
            self._tell(shown or "nothing is set: the model's defaults hold")
            return True
        name = name.replace("-", "_")
        known = [field for field in SamplingParams.__struct_fields__ if field not in _NOT_FOR_CHAT]
        if name not in known:
            self._tell(f"there is no parameter {name}{did_you_mean(name, known) or '; known are ' + ', '.join(known)}")
            return True
        changed = {key: old for key, old in self.settings.items() if key != name}
        if value.strip():
            changed[name] = _parsed(value.strip())
        try:
            streaming_params({}, changed)
        except InvalidRequest as error:
            self._tell(f"error: {error}")
            return True
        self.settings = changed
        self._tell(f"{name} = {changed[name]!r}" if name in changed else f"{name} is back to its default")
        return True

    def _save(self, rest: str) -> bool:
        content = {"system": self.system, "messages": self.messages, "settings": self.settings}
        try:
            Path(rest).expanduser().write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
        except OSError as error:
            self._tell(f"error: cannot write {rest!r}: {error.strerror}")
        else:
            self._tell(f"saved {len(self.messages)} messages to {rest}")
        return True

    def _load(self, rest: str) -> bool:
        try:
            system, messages, settings = _read_conversation(Path(rest).expanduser())
        except OSError as error:
            self._tell(f"error: cannot read {rest!r}: {error.strerror}")
        except (ValueError, InvalidRequest) as error:
            self._tell(f"error: {rest} is not a saved conversation: {error}")
        else:
            self.system, self.messages, self.settings = system, messages, settings
            self._tell(f"loaded {len(messages)} messages")
        return True

    def _regenerate(self, rest: str) -> bool:
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if not self.messages:
            self._tell("there is nothing to answer yet")
        else:
            self._answer()
        return True


class EngineTalker:
    """Answers with an engine, on an event loop that lives as long as the conversation."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine, self._runner = engine, asyncio.Runner()

    def answer(
        self, messages: list[dict[str, str]], settings: Mapping[str, Any], write: Callable[[str], None]
    ) -> tuple[str, bool]:
        parts: list[str] = []
        params = streaming_params(self._engine.frontend.sampling_defaults, settings)

        async def stream() -> None:
            async for output in self._engine.chat(messages, params):
                text = output.outputs[0].text
                parts.append(text)
                write(text)

        try:
            self._runner.run(stream())
        except KeyboardInterrupt:  # the runner has cancelled the task, which has aborted the request
            return "".join(parts), True
        return "".join(parts), False

    def close(self) -> None:
        self._runner.close()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", metavar="TEXT", help="A system message to begin with.")
    add_sampling_arguments(parser)
    add_engine_arguments(parser, model="positional")


def main(args: argparse.Namespace) -> int:
    settings = sampling_settings(args)
    setup_logging("WARNING")
    engine = open_engine(options_from(args))
    talker = EngineTalker(engine)
    try:
        if not engine.inputs.can_chat:
            raise InvalidRequest(
                "the model has no chat template: give one with --chat-template, or use octavo run --raw",
                "chat_template",
            )
        chat = Chat(talker, settings, args.system, _write, note)
        for line in _lines(chat):
            if not chat.take(line):
                break
    finally:
        talker.close()
        engine.shutdown()
    return 0


def _lines(chat: Chat) -> Iterator[str]:
    """What the user types, or the lines of standard input."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield from sys.stdin
        return
    toolkit = import_module("prompt_toolkit")
    completer = import_module("prompt_toolkit.completion").WordCompleter(chat.commands, sentence=True)
    session = toolkit.PromptSession(completer=completer, complete_while_typing=False)
    note("/help lists commands, Ctrl-C stops an answer, Ctrl-D leaves")
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _parsed(value: str) -> Any:
    """A number, true, false, a list, or else the text itself."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _read_conversation(path: Path) -> tuple[str | None, list[dict[str, str]], dict[str, Any]]:
    """Raises OSError, ValueError, InvalidRequest."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("messages"), list):
        raise ValueError("messages are missing")
    for index, message in enumerate(content["messages"]):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ValueError(f"messages[{index}] needs role and content")
    system, settings = content.get("system"), content.get("settings") or {}
    if not (system is None or isinstance(system, str)) or not isinstance(settings, dict):
        raise ValueError("system must be text and settings an object")
    unknown = sorted(set(settings) - set(SamplingParams.__struct_fields__) | set(settings) & set(_NOT_FOR_CHAT))
    if unknown:
        raise ValueError(f"settings has no {', '.join(unknown)}")
    streaming_params({}, settings)
    return system, content["messages"], settings
