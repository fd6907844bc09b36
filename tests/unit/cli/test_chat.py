"""The conversation and its commands, with somebody else answering; and the pieces under `octavo run`."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from octavo.cli import run
from octavo.cli.arguments import Parser, UsageError
from octavo.cli.chat import Chat, EngineTalker
from octavo.cli.sampling_flags import add_sampling_arguments, sampling_settings, streaming_params
from octavo.core.outputs import CompletionOutput, RequestOutput
from octavo.core.params import RequestOutputKind
from octavo.engine.async_engine import AsyncEngine
from octavo.errors import InvalidParameter, PromptTooLong
from tests.unit.engine.scripted import byte_level_tokenizer, echo, scripted_frontend


class Echo:
    """Answers with what it was told, and remembers it all."""

    def __init__(self) -> None:
        self.heard: list[list[dict[str, str]]] = []
        self.settings: Mapping[str, Any] = {}
        self.stops = False
        self.error: Exception | None = None

    def answer(
        self, messages: list[dict[str, str]], settings: Mapping[str, Any], write: Callable[[str], None]
    ) -> tuple[str, bool]:
        if self.error is not None:
            raise self.error
        self.heard.append([dict(message) for message in messages])
        self.settings = settings
        text = f"{messages[-1]['content']}!"
        write(text)
        return text, self.stops


class Desk:
    def __init__(self, system: str | None = None, **settings: Any) -> None:
        self.talker, self.shown, self.told = Echo(), [], []
        self.chat = Chat(self.talker, settings, system, self.shown.append, self.told.append)

    def type(self, *lines: str) -> None:
        for line in lines:
            assert self.chat.take(line)


def roles(messages: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


def test_the_whole_conversation_is_answered() -> None:
    desk = Desk(system="be kind")
    desk.type("one", "", "  two  ")
    assert roles(desk.talker.heard[1]) == [
        ("system", "be kind"),
        ("user", "one"),
        ("assistant", "one!"),
        ("user", "two"),
    ]
    assert "".join(desk.shown) == "one!\ntwo!\n"


def test_clear_system_and_quit() -> None:
    desk = Desk()
    desk.type("one", "/system be short", "/clear", "two")
    assert roles(desk.talker.heard[-1]) == [("system", "be short"), ("user", "two")]
    desk.type("/system", "three")
    assert desk.talker.heard[-1][0]["role"] == "user"
    assert not desk.chat.take("/quit")


def test_regenerate_answers_the_same_again() -> None:
    desk = Desk()
    desk.type("/regenerate")
    assert not desk.talker.heard and "nothing" in desk.told[-1]
    desk.type("one", "/regenerate")
    assert desk.talker.heard[0] == desk.talker.heard[1]
    assert roles(desk.chat.messages) == [("user", "one"), ("assistant", "one!")]


def test_set_checks_names_and_values() -> None:
    desk = Desk(temperature=0.5)
    desk.type("/set top_k 5", "/set stop END", "/set max-tokens 7", "x")
    assert desk.talker.settings == {"temperature": 0.5, "top_k": 5, "stop": "END", "max_tokens": 7}
    desk.type("/set temperature -1")
    assert "temperature must be at least 0" in desk.told[-1] and desk.chat.settings["temperature"] == 0.5
    desk.type("/set temprature 1")
    assert "did you mean temperature" in desk.told[-1]
    desk.type("/set n 3")
    assert "there is no parameter n" in desk.told[-1]
    desk.type("/set temperature")
    assert "temperature" not in desk.chat.settings
    desk.type("/set")
    assert "top_k=5" in desk.told[-1]


def test_what_is_unknown_is_said() -> None:
    desk = Desk()
    desk.type("/hlep")
    assert "did you mean /help" in desk.told[-1]
    desk.type("/help")
    assert all(command in desk.told[-1] for command in desk.chat.commands if command != "/exit")


def test_save_and_load(tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    desk = Desk(system="be kind", top_k=4)
    desk.type("größer 🙂", f"/save {file}")
    other = Desk()
    other.type(f"/load {file}", "again")
    assert roles(other.talker.heard[0]) == [
        ("system", "be kind"),
        ("user", "größer 🙂"),
        ("assistant", "größer 🙂!"),
        ("user", "again"),
    ]
    assert other.talker.settings == {"top_k": 4}


@pytest.mark.parametrize(
    "content",
    ["[]", "{", '{"messages": [{"role": "user"}]}', '{"messages": [], "settings": {"top_k": -7}}',
     '{"messages": [], "settings": {"bogus": 1}}', '{"messages": [], "system": 5}'],
)  # fmt: skip
def test_what_is_no_conversation_is_not_loaded(tmp_path: Path, content: str) -> None:
    file = tmp_path / "chat.json"
    file.write_text(content)
    desk = Desk()
    desk.type("one", f"/load {file}")
    assert "is not a saved conversation" in desk.told[-1] and len(desk.chat.messages) == 2
    desk.type(f"/load {tmp_path / 'absent'}", f"/save {tmp_path / 'absent' / 'x'}")
    assert "cannot read" in desk.told[-2] and "cannot write" in desk.told[-1]


def test_a_message_that_cannot_be_answered_is_taken_back() -> None:
    desk = Desk()
    desk.type("one")
    desk.talker.error = PromptTooLong(99, 10, "the context is 10 tokens")
    desk.type("two")
    assert "99 tokens" in desk.told[-1] and len(desk.chat.messages) == 2
    desk.talker.error = None
    desk.type("three")
    assert [content for _, content in roles(desk.talker.heard[-1])] == ["one", "one!", "three"]


def test_a_stopped_answer_stays_in_the_conversation() -> None:
    desk = Desk()
    desk.talker.stops = True
    desk.type("one")
    assert "(stopped)" in desk.told and roles(desk.chat.messages)[-1] == ("assistant", "one!")


def test_an_engine_answers_and_ctrl_c_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    frontend, core = scripted_frontend(echo, byte_level_tokenizer(), chat_template="{{ messages[-1].content }}")
    engine = AsyncEngine.from_frontend(frontend)
    talker = EngineTalker(engine)
    try:
        shown: list[str] = []
        answer = talker.answer([{"role": "user", "content": "hello "}], {"max_tokens": 6}, shown.append)
        assert answer == ("".join(shown), False) and answer[0].startswith("hello")

        def interrupt(text: str) -> None:
            raise KeyboardInterrupt

        text, stopped = talker.answer([{"role": "user", "content": "hello "}], {"max_tokens": 10**6}, interrupt)
        assert stopped and text
        talker.answer([{"role": "user", "content": "hello "}], {"max_tokens": 2}, shown.append)
        deadline = time.monotonic() + 10  # the abort is on its way to the core's thread
        while core.requests and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not core.requests
    finally:
        talker.close()
        engine.shutdown()
    assert core.aborted


def test_sampling_flags() -> None:
    parser = Parser(prog="x")
    add_sampling_arguments(parser)
    args = parser.parse(["--temperature", "0.2", "--stop", "A", "--stop", "B", "--max-tokens", "9", "--ignore-eos"])
    settings = sampling_settings(args)
    assert settings == {"temperature": 0.2, "stop": ["A", "B"], "max_tokens": 9, "ignore_eos": True}
    params = streaming_params({"temperature": 0.9, "top_p": 0.8}, settings)
    assert (params.temperature, params.top_p, params.output_kind) == (0.2, 0.8, RequestOutputKind.DELTA)
    assert streaming_params({}, {}).temperature == 0.7 and streaming_params({}, {}).max_tokens is None
    assert streaming_params({"temperature": 0.9}, {}).temperature == 0.9
    with pytest.raises(InvalidParameter, match="top_p"):
        sampling_settings(parser.parse(["--top-p", "3"]))


def test_prompts_from_the_command_line_or_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe\n"))
    assert run.read_prompt("-") == "from a pipe\n"
    assert run.read_prompt("given") == "given"
    with pytest.raises(UsageError, match="empty"):
        run.read_prompt(None)  # the pipe is read up


def test_the_answer_is_shown_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    async def outputs() -> AsyncIterator[RequestOutput]:
        for text, reason in (("Hel", None), ("lo", "length")):
            yield RequestOutput(
                "r", None, [1, 2], [CompletionOutput(0, text, [5], finish_reason=reason)], reason is not None
            )

    figures = asyncio.run(run.show(outputs()))
    assert capsys.readouterr().out == "Hello\n"
    assert figures.startswith("2 tokens in, 2 out (length limit); first after")


def test_raw_excludes_a_system_message() -> None:
    with pytest.raises(UsageError, match="--system"):
        run.main(argparse.Namespace(raw=True, system="x", quiet=False, prompt="x"))


def test_saved_conversations_are_plain_json(tmp_path: Path) -> None:
    desk = Desk()
    desk.type("one", f"/save {tmp_path / 'c'}")
    assert json.loads((tmp_path / "c").read_text())["messages"][0] == {"role": "user", "content": "one"}
