"""From an API's fields to the form that a request's answer must have, and back from text to forced calls."""

from __future__ import annotations

import json
from typing import Any

import pytest

from octavo.core.structured import StructuredOutputsParams
from octavo.errors import InvalidRequest
from octavo.server.chat import forced_tools, only_allowed
from octavo.server.output_events import Text, ToolCallArguments, ToolCallStart
from octavo.server.output_parser import make_output_parser, thinking_of
from octavo.server.protocol.chat import ChatCompletionRequest
from octavo.server.structured import ForcedTools, forced_form, form_of, strict_form
from tests.unit.server.scripted_server import run, scripted_server

SCHEMA: Any = {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "integer"}}}
TOOLS: Any = [
    {"type": "function", "function": {"name": "look", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]


def form(tools: Any = None, forced: ForcedTools | None = None, **fields: Any) -> StructuredOutputsParams | None:
    body = ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": "x"}], **fields})
    given = None if body.response_format is None else body.response_format.model_dump(exclude_unset=True)
    return form_of(body, format=given, tools=tools, forced=forced, tool_parser="hermes")


def test_fields() -> None:
    assert form() is None and form(response_format={"type": "text"}) is None
    schema = form(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}})
    assert schema is not None and schema.value == SCHEMA and schema.field == "response_format"
    assert form(response_format={"type": "json_object"}).json_object is True  # type: ignore[union-attr]
    tag = form(response_format={"type": "structural_tag", "structures": [], "triggers": []})
    assert tag is not None and tag.kind == "structural_tag"
    assert form(structured_outputs={"regex": "a", "backend": "xgrammar"}).backend == "xgrammar"  # type: ignore[union-attr]
    older = form(guided_json=SCHEMA, guided_decoding_backend="outlines")
    assert older is not None and (older.value, older.backend, older.field) == (SCHEMA, "outlines", "guided_json")
    assert form(guided_decoding_backend="outlines") is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "response_format"),
        ({"structured_outputs": {"regex": "a"}, "guided_regex": "b"}, "guided_regex"),
        ({"structured_outputs": {"regex": "a", "json_object": True}}, "structured_outputs"),
        ({"response_format": {"type": "json_schema"}}, "response_format.schema"),
        ({"forced": ForcedTools(), "tools": TOOLS, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"forced": ForcedTools("other"), "tools": TOOLS}, "tool_choice"),
        ({"forced": ForcedTools()}, "tool_choice"),
    ],
)
def test_contradictions_are_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        form(**fields)
    assert refused.value.field == param


def test_forced_calls_as_a_schema() -> None:
    array = forced_form(TOOLS, ForcedTools(parallel=False)).value
    assert array["minItems"] == array["maxItems"] == 1
    names = [call["properties"]["name"]["const"] for call in array["items"]["anyOf"]]
    assert names == ["look", "now"]
    assert array["$defs"]["tool_0"]["properties"]["a"] == {"$ref": "#/$defs/tool_0/$defs/x"}
    assert array["$defs"]["tool_1"] == {"type": "object"}
    named = forced_form(TOOLS, ForcedTools("look"))
    assert named.value == SCHEMA and named.field == "tools[0].function.parameters"
    assert TOOLS[0]["function"]["parameters"] == SCHEMA, "the request's own was changed"


def test_strict_tools() -> None:
    assert strict_form(TOOLS, "hermes") is None
    strict = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}, TOOLS[1]]
    tag = strict_form(strict, "hermes")
    assert tag is not None and tag.value["triggers"] == ["<tool_call>"]
    assert [entry["schema"] for entry in tag.value["structures"]] == [SCHEMA, {"type": "object"}]
    with pytest.raises(InvalidRequest) as refused:
        strict_form(strict, "pythonic")
    assert refused.value.field == "tools[0].function.strict" and "pythonic" in str(refused.value)
    assert form(tools=strict, response_format={"type": "json_object"}).kind == "json_object"  # type: ignore[union-attr]


def test_allowed_tools_in_both_forms() -> None:
    names = [{"type": "function", "name": "now"}]
    nested = [{"type": "function", "function": {"name": "now"}}]
    for mode in ("auto", "required"):
        for choice in (
            {"type": "allowed_tools", "mode": mode, "tools": names},
            {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": nested}},
        ):
            assert forced_tools(choice, True) == (ForcedTools() if mode == "required" else None)
            assert only_allowed(TOOLS, choice) == [TOOLS[1]]
    assert only_allowed(TOOLS, "required") == TOOLS
    for bad, words in (
        ({"type": "allowed_tools", "mode": "auto", "tools": []}, "with a mode"),
        ({"type": "allowed_tools", "tools": names}, "with a mode"),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"name": "far"}]}, "allows the tool 'far'"),
    ):
        with pytest.raises(InvalidRequest, match=words) as refused:
            only_allowed(TOOLS, bad)
        assert refused.value.field == "tool_choice"


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_forced_calls_are_read(size: int) -> None:
    calls = [{"name": "look", "parameters": {"a": 'x"é'}}, {"name": "now", "parameters": {}}]
    for text, name, wanted in (
        (json.dumps(calls), None, [("look", calls[0]["parameters"]), ("now", {})]),
        (' {"a": [1, {"b": "]"}]}\n', "look", [("look", {"a": [1, {"b": "]"}]})]),
    ):
        parser = make_output_parser(None, "qwen3", None, TOOLS, True, ForcedTools(name))
        events = []
        whole = "thoughts</think>\n" + text
        for at in range(0, len(whole), size):
            events += parser.push(whole[at : at + size])
        events += parser.finish()
        found: dict[int, list[str]] = {}
        for event in events:
            if isinstance(event, ToolCallStart):
                found[event.index] = [event.name, ""]
            elif isinstance(event, ToolCallArguments):
                found[event.index][1] += event.json_fragment
            else:
                assert not isinstance(event, Text) or not event.text.strip(), event
        assert [(name, json.loads(arguments)) for name, arguments in found.values()] == wanted


def test_thoughts_before_a_form() -> None:
    assert thinking_of(None, True) is None
    qwen = thinking_of("qwen3", True)
    assert qwen is not None and qwen.tags == {"<think>": ["</think>"]} and qwen.starts_inside
    harmony = thinking_of("openai_gptoss", False)
    assert harmony is not None and harmony.starts_inside
    assert "<|channel|>final<|message|>" in harmony.tags["<|channel|>"]


def test_what_reaches_the_core() -> None:
    async def work() -> None:
        async with scripted_server("x") as server:
            server.state.served.result().reasoning_parser = "qwen3"
            form = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
            body: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "response_format": form}
            await server.json("/v1/chat/completions", **body)
            sent = server.core.added[-1].params.structured_outputs
            assert sent is not None and sent.value == SCHEMA and sent.thinking is not None
            await server.json("/v1/chat/completions", messages=body["messages"])
            assert server.core.added[-1].params.structured_outputs is None

    run(work)
