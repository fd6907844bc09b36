"""Answers of a set form and forced calls, with OpenAI's and Anthropic's own clients, on a model that says anything."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel

from tests.server.serving import serving, until_ready
from tests.tiny_model import write_tiny_model

HELLO: Any = [{"role": "user", "content": "hello to the cat"}]
SCHEMA: Any = {
    "type": "object",
    "properties": {
        "size": {"type": "integer", "minimum": 1, "maximum": 99},
        "color": {"$ref": "#/$defs/color"},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["size", "color", "tags"],
    "additionalProperties": False,
    "$defs": {"color": {"enum": ["red", "green"]}},
}
LOOK: Any = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"to": {"$ref": "#/$defs/side"}},
            "required": ["to"],
            "additionalProperties": False,
            "$defs": {"side": {"enum": ["up", "down"]}},
        },
    },
}
COUNT: Any = {
    "type": "function",
    "function": {
        "name": "count",
        "parameters": {
            "type": "object",
            "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["n"],
            "additionalProperties": False,
        },
    },
}
MODEL: Any = {"model": "tiny", "max_tokens": 300}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with room for tools in a prompt of bytes, whose JSON has no spaces, of which random models are fond."""
    model = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", max_model_len=2048)
    compact = json.dumps({"disable_any_whitespace": True})
    flags = ["--served-model-name", "tiny", "--structured-outputs-config", compact]
    with serving(model, *flags) as process:
        with httpx.Client(base_url=process.url) as client:
            until_ready(client)
        yield process.url
        assert "Traceback" not in process.log, process.log


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture
def openai_client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def anthropic_client(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


class Cat(BaseModel):
    lives: bool
    legs: list[bool]


def chat(client: openai.OpenAI, seed: int = 1, **more: Any) -> Any:
    return client.chat.completions.create(messages=HELLO, seed=seed, **MODEL, **more).choices[0]


def test_response_format(openai_client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}
    for seed in range(3):
        choice = chat(openai_client, seed, response_format=form)
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)
    stream = openai_client.chat.completions.create(
        messages=HELLO, seed=2, stream=True, n=2, response_format=form, **MODEL
    )
    texts = ["", ""]
    for chunk in stream:
        for part in chunk.choices:
            texts[part.index] += part.delta.content or ""
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    parsed = openai_client.chat.completions.parse(messages=HELLO, seed=1, response_format=Cat, **MODEL).choices[0]
    assert isinstance(parsed.message.parsed, Cat)


def test_json_object_and_structured_outputs(openai_client: openai.OpenAI) -> None:
    extra = {"structured_outputs": {"regex": "[a-c]{4}-[0-9]{2}", "backend": "guidance"}}
    assert re.fullmatch(r"[a-c]{4}-\d\d", chat(openai_client, extra_body=extra).message.content)
    assert chat(openai_client, extra_body={"guided_choice": ["yes", "no"]}).message.content in ("yes", "no")
    text = chat(openai_client, response_format={"type": "json_object"}).message.content
    assert text.lstrip().startswith("{")
    completion = openai_client.completions.create(
        model="tiny", prompt=["a", "b"], max_tokens=20, extra_body={"structured_outputs": {"choice": ["one", "two"]}}
    )
    assert {choice.text for choice in completion.choices} <= {"one", "two"}


@pytest.mark.parametrize("stream", [False, True])
def test_forced_tools(openai_client: openai.OpenAI, stream: bool) -> None:
    for choice, names in (
        ("required", {"look", "count"}),
        ({"type": "function", "function": {"name": "count"}}, {"count"}),
    ):
        settings: Any = {"messages": HELLO, "tools": [LOOK, COUNT], "tool_choice": choice, "seed": 3, **MODEL}
        settings["parallel_tool_calls"] = False
        if stream:
            with openai_client.chat.completions.stream(**settings) as events:
                message: Any = events.get_final_completion().choices[0]
        else:
            message = openai_client.chat.completions.create(**settings).choices[0]
        assert message.finish_reason == "tool_calls" and not message.message.content
        (call,) = message.message.tool_calls
        assert call.function.name in names and call.id
        tool = LOOK if call.function.name == "look" else COUNT
        jsonschema.validate(json.loads(call.function.arguments), tool["function"]["parameters"])


def test_responses(openai_client: openai.OpenAI) -> None:
    settings: Any = {"model": "tiny", "input": "hello", "max_output_tokens": 150}
    form: Any = {"format": {"type": "json_schema", "name": "thing", "schema": SCHEMA, "strict": True}}
    answer = openai_client.responses.create(text=form, **settings)
    jsonschema.validate(json.loads(answer.output_text), SCHEMA)
    assert answer.text is not None and answer.text.format is not None and answer.text.format.type == "json_schema"
    tool: Any = {"type": "function", "strict": True, **COUNT["function"]}
    called = openai_client.responses.create(tools=[tool], tool_choice={"type": "function", "name": "count"}, **settings)
    item: Any = called.output[0]
    assert item.type == "function_call" and json.loads(item.arguments)["n"] in range(10)


def test_messages(anthropic_client: anthropic.Anthropic) -> None:
    tool: Any = {"name": "count", "input_schema": COUNT["function"]["parameters"]}
    for choice in ({"type": "any"}, {"type": "tool", "name": "count"}):
        answer = anthropic_client.messages.create(tools=[tool], tool_choice=choice, messages=HELLO, **MODEL)  # type: ignore[arg-type]
        block: Any = answer.content[0]
        assert answer.stop_reason == "tool_use" and block.name == "count" and block.input["n"] in range(10)


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
         "response_format", "'not' (at #)"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
         "response_format.json_schema.schema", "is missing"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "text"}}}},
         "response_format", "'type' must be one of"),
        ({"extra_body": {"structured_outputs": {"regex": "(a"}}}, "structured_outputs.regex", "unclosed group"),
        ({"extra_body": {"structured_outputs": {"regex": "a", "choice": ["b"]}}}, "structured_outputs", "regex and ch"),
        ({"extra_body": {"structured_outputs": {"regx": "a"}}}, "structured_outputs", "regx"),
        ({"extra_body": {"structured_outputs": {"json": "{"}}}, "structured_outputs.json", "JSON"),
        ({"extra_body": {"structured_outputs": {"regex": "a", "backend": "x"}}}, "structured_outputs.backend", "xgr"),
        ({"tools": [COUNT], "tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice", "count"),
        ({"tool_choice": "required"}, "tool_choice", "none in tools"),
        ({"tools": [COUNT], "tool_choice": "sometimes"}, "tool_choice", "required"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_a_400_that_names_it(
    openai_client: openai.OpenAI, more: Any, param: str, words: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            openai_client.chat.completions.create(messages=HELLO, stream=stream, **MODEL, **more)
        assert refused.value.param == param and words in refused.value.message, refused.value.message


def test_a_poisonous_form_beside_other_streams(http: httpx.Client) -> None:
    """The streams' tokens are those that they have alone."""

    def ask(seed: int, **more: Any) -> httpx.Response:
        body = {"model": "tiny", "messages": HELLO, "max_tokens": 60, "seed": seed, "ignore_eos": True, **more}
        return http.post("/v1/chat/completions", json=body)

    alone = [ask(seed).json()["choices"][0]["message"]["content"] for seed in range(8)]
    beside: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda i=seed: beside.update({i: ask(i)})) for seed in range(8)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    hostile = {"type": "string", "allOf": [{"pattern": f"(a|b)*a(a|b){{{i}}}c"} for i in range(4, 24)]}
    poison = [
        ask(0, structured_outputs={"regex": "[a-"}),
        ask(0, structured_outputs={"grammar": "start: start"}),
        ask(0, structured_outputs={"json": hostile, "backend": "llguidance"}),
    ]
    for thread in threads:
        thread.join()
    assert [response.status_code for response in poison] == [400] * 3
    assert [beside[seed].json()["choices"][0]["message"]["content"] for seed in range(8)] == alone
