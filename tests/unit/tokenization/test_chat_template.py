from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models
from transformers.utils.chat_template_utils import render_jinja_template

from octavo.config.checkpoint import Checkpoint, find_checkpoint
from octavo.errors import CheckpointError, InvalidRequest
from octavo.tokenization.chat_template import find_chat_template, render_chat
from octavo.tokenization.tokenizer import Tokenizer
from tests.tiny_gguf import sizes, write_gguf

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOKENIZER = Tokenizer(tokenizers.Tokenizer(models.BPE()), SPECIAL)

CHATML = """{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
STRICT = """{{ bos_token }}{% for message in messages %}
{% if message['role'] not in ['user', 'assistant'] %}
{{ raise_exception('Only user and assistant roles are supported!') }}
{% elif (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate!') }}
{% endif %}
{% if message.role == 'user' %}{{ '[INST] ' + message.content | trim + ' [/INST]' }}{% else %}
{% generation %}{{ message.content | trim + eos_token }}{% endgeneration %}
{% endif %}{% endfor %}"""
PARTS = """{% for message in messages %}{{ '<' + message.role + '>' }}{% set content = message['content'] %}
{% if content is string %}{{ content }}{% else %}{% for part in content %}
{% if part.type == 'text' %}{{ part.text | trim }}{% endif %}{% endfor %}{% endif %}{{ '\\n' }}{% endfor %}
{%- if add_generation_prompt %}<model>{% endif %}"""
TOOLS = """{%- if tools %}{{ 'TOOLS ' + (tools | tojson(indent=2)) }}{% for tool in tools %}
{%- if tool.function is not defined %}{% continue %}{% endif %}
{{ tool.function.name }}: {{ tool | tojson }}
{%- endfor %}{% endif %}
{%- for message in messages %}
{{ message.role }}: {{ message.content or '' }}
{%- for call in message.tool_calls or [] %} CALL {{ call.function.name }}({{ call.function.arguments | tojson }})
{%- endfor %}{%- if message.content == 'stop' %}{% break %}{% endif %}{% endfor %} {{ flag | default('off') }}"""

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi <b> & 'quotes' ünï 日本"}],
    [{"role": "user", "content": "  a "}, {"role": "assistant", "content": " b\n"}, {"role": "user", "content": "c"}],
    [{"role": "user", "content": "stop"}, {"role": "assistant", "content": "not shown"}],
]
TOOL = {"type": "function", "function": {"name": "f", "description": "<ü>", "parameters": {"b": 1, "a": [None, True]}}}


def theirs(template: str, messages: list[dict[str, Any]], **settings: Any) -> str:
    rendered, _ = render_jinja_template(
        conversations=[copy.deepcopy(messages)], chat_template=template, **SPECIAL, **settings
    )
    return str(rendered[0])


@pytest.mark.parametrize("template", [CHATML, STRICT, PARTS, TOOLS], ids=["chatml", "strict", "parts", "tools"])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize(
    "settings",
    [
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"tools": [TOOL, {"other": 1}], "add_generation_prompt": True, "flag": "on"},
        {"continue_final_message": True, "add_generation_prompt": False},
    ],
)
def test_agrees_with_transformers(template: str, chat: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    before = copy.deepcopy(chat)
    try:
        expected = theirs(template, chat, **settings)
    except ValueError:  # the template breaks off before the last message, which cannot be continued then
        with pytest.raises(InvalidRequest, match="continue_final_message cannot be served"):
            render_chat(template, chat, TOKENIZER, **settings)
        return
    assert render_chat(template, chat, TOKENIZER, **settings) == expected
    assert chat == before


def test_parts_agree_with_transformers() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two "}]
    chat = [{"role": "user", "content": parts}]
    assert render_chat(PARTS, chat, TOKENIZER) == theirs(PARTS, chat, add_generation_prompt=True)
    continued = {"continue_final_message": True, "add_generation_prompt": False}
    assert render_chat(PARTS, chat, TOKENIZER, **continued) == theirs(PARTS, chat, **continued)


def test_parts_are_joined_for_a_template_that_takes_strings() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    plain = render_chat(CHATML, [{"role": "user", "content": "one\ntwo"}], TOKENIZER)
    assert render_chat(CHATML, [{"role": "user", "content": parts}], TOKENIZER) == plain


def test_arguments_of_tool_calls_become_objects() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"b": "ü", "a": 1}'}}
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert 'assistant:  CALL f({"b": "ü", "a": 1})' in render_chat(TOOLS, chat, TOKENIZER)
    call["function"]["arguments"] = "not json"
    assert 'CALL f("not json")' in render_chat(TOOLS, chat, TOKENIZER)


def test_dates_are_there() -> None:
    text = render_chat("{{ strftime_now('%Y') }}", CHATS[0], TOKENIZER)
    assert 2024 <= int(text) < 2200


# --- refusals ---


@pytest.mark.parametrize(
    ("messages", "field", "message"),
    [
        ("hello", "messages", "messages must be a list of messages, got str"),
        ({"role": "user"}, "messages", "must be a list of messages, got dict"),
        ([], "messages", "at least one message"),
        (["hello"], "messages[0]", "must be a dict with role and content, got str"),
        ([CHATS[0][0], {"content": "x"}], "messages[1].role", "must be a string such as 'user', got None"),
        ([{"role": 3, "content": "x"}], "messages[0].role", "got 3"),
        ([{"role": "user"}], "messages[0].content", "is missing"),
        ([{"role": "user", "content": 7}], "messages[0].content", "a string or a list of parts, got int"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]", "a part of type 'text', got 'str'"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "messages[0].content[0]",
            "a part of type 'text', got 'image_url'",
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "messages[0].content[0].text",
            "must be a string, got None",
        ),
    ],
)
def test_bad_messages(messages: Any, field: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        render_chat(CHATML, messages, TOKENIZER)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("roles", "field", "message"),
    [
        (["user", "assistant", "narrator"], "messages[2]", "Only user and assistant roles are supported!"),
        (["user", "user"], "messages[1]", "Roles must alternate!"),
    ],
)
def test_what_the_template_refuses_names_the_message(roles: list[str], field: str, message: str) -> None:
    messages = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(InvalidRequest, match=message) as caught:
        render_chat(STRICT, messages, TOKENIZER)
    assert caught.value.field == field
    assert str(caught.value).startswith(field)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({'role': 'x', 'content': ''}) }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ raise_exception.__globals__['jinja2'] }}",
    ],
)
def test_templates_stay_in_their_sandbox(template: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template refuses it"):
        render_chat(template, CHATS[0], TOKENIZER)


def test_other_bad_input() -> None:
    with pytest.raises(InvalidRequest, match="chat_template has a syntax error in line 2"):
        render_chat("a\n{% for %}", CHATS[0], TOKENIZER)
    with pytest.raises(InvalidRequest, match="has no chat template"):
        render_chat(None, CHATS[0], TOKENIZER)
    with pytest.raises(InvalidRequest, match="exclude each other"):
        render_chat(CHATML, CHATS[0], TOKENIZER, continue_final_message=True)
    with pytest.raises(InvalidRequest, match=r"tools\[0\] must be a dict, got str"):
        render_chat(CHATML, CHATS[0], TOKENIZER, tools=["f"])  # type: ignore[list-item]
    with pytest.raises(InvalidRequest, match="tools must be a list"):
        render_chat(CHATML, CHATS[0], TOKENIZER, tools={"f": 1})  # type: ignore[arg-type]


# --- where templates come from ---


def checkpoint(path: Path) -> Checkpoint:
    return Checkpoint("x", path, "safetensors", {"architectures": ["LlamaForCausalLM"]}, {}, "x")


def test_sources_in_a_directory(tmp_path: Path) -> None:
    found = checkpoint(tmp_path)
    assert find_chat_template(found) is None
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"chat_template": "one"}))
    assert find_chat_template(found) == "one"
    named = [{"name": "default", "template": "two"}, {"name": "tool_use", "template": "three"}]
    settings.write_text(json.dumps({"chat_template": named}))
    assert (find_chat_template(found), find_chat_template(found, with_tools=True)) == ("two", "three")
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "four"}))
    assert find_chat_template(found) == "four"
    (tmp_path / "chat_template.jinja").write_text("five ü", encoding="utf-8")
    assert find_chat_template(found) == "five ü"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja cannot be read"):
        find_chat_template(found)


def test_sources_in_a_gguf(tmp_path: Path) -> None:
    templates = {"tokenizer.chat_template": "one", "tokenizer.chat_template.tool_use": "two"}
    found = find_checkpoint(str(write_gguf(tmp_path / "m.gguf", "llama", sizes("llama") | templates)))
    assert (find_chat_template(found), find_chat_template(found, with_tools=True)) == ("one", "two")
    assert find_chat_template(find_checkpoint({"architectures": ["X"]}, load_format="dummy")) is None
