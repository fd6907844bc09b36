"""Anthropic's API: its messages as a conversation, its blocks and events, its errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.server.scripted_server import run, scripted_server

URL = "/v1/messages"
HELLO: dict[str, Any] = {"model": "m", "max_tokens": 200, "messages": [{"role": "user", "content": "hello"}]}
TOOLS = [{"name": "look", "description": "d", "input_schema": {"type": "object"}}]
ANSWER = '<think>hm</think>so <call look>{"a": 1}</call>'


def added_up(events: list[Any]) -> list[dict[str, Any]]:
    """The blocks that a stream's events make; checks that each begins and ends in its place."""
    blocks: list[dict[str, Any]] = []
    is_open = False
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(blocks) and not is_open
                blocks.append({**event["content_block"], "json": ""})
                is_open = True
            case "content_block_delta":
                assert event["index"] == len(blocks) - 1 and is_open
                delta = event["delta"]
                match delta["type"]:
                    case "text_delta":
                        blocks[-1]["text"] += delta["text"]
                    case "thinking_delta":
                        blocks[-1]["thinking"] += delta["thinking"]
                    case "input_json_delta":
                        blocks[-1]["json"] += delta["partial_json"]
            case "content_block_stop":
                is_open = False
    assert not is_open
    for block in blocks:
        text = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(text)
    return blocks


def test_streams_say_what_whole_answers_say() -> None:
    async def work() -> None:
        async with scripted_server(ANSWER) as server:
            whole = await server.json(URL, tools=TOOLS, **HELLO)
            events = await server.chunks(URL, tools=TOOLS, **HELLO)
            assert added_up(events) == whole["content"]
            assert [block["type"] for block in whole["content"]] == ["thinking", "text", "tool_use"]
            assert whole["content"][2] == {"type": "tool_use", "id": "call_0", "name": "look", "input": {"a": 1}}
            kinds = [event["type"] for event in events]
            assert kinds[:2] == ["message_start", "ping"] and kinds[-2:] == ["message_delta", "message_stop"]
            assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
            assert events[-2]["usage"] == whole["usage"] and whole["stop_reason"] == "tool_use"
            assert whole["usage"]["cache_read_input_tokens"] == 16
            counted = await server.json(f"{URL}/count_tokens", model="m", messages=HELLO["messages"], tools=TOOLS)
            assert counted["input_tokens"] == whole["usage"]["input_tokens"] + 16

    run(work)


def test_ends() -> None:
    async def work() -> None:
        async with scripted_server("one two three") as server:
            assert (await server.json(URL, **HELLO))["stop_reason"] == "end_turn"
            assert (await server.json(URL, **{**HELLO, "max_tokens": 2}))["stop_reason"] == "max_tokens"
            stopped = await server.json(URL, stop_sequences=[" two"], **HELLO)
            assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", " two")
            assert stopped["content"] == [{"type": "text", "text": "one"}]
            await server.json(URL, **{**HELLO, "max_tokens": 10**6})  # cut to what the context has left
            assert server.core.added[-1].params.max_tokens < 512
        async with scripted_server("") as server:
            assert (await server.json(URL, **HELLO))["content"] == [{"type": "text", "text": ""}]

    run(work)


def test_a_conversation_with_tools_and_thoughts() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "redacted_thinking", "data": "…"},
                {"type": "text", "text": "c"},
                {"type": "tool_use", "id": "1", "name": "look", "input": {"x": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "seen"}]},
                {"type": "text", "text": "and?"},
            ],
        },
    ]

    async def work() -> None:
        async with scripted_server("x") as server:
            await server.json(URL, **{**HELLO, "messages": messages, "system": [{"type": "text", "text": "be"}]})
            ids = server.core.added[-1].prompt_token_ids
            text = server.engine.get_tokenizer().decode(ids, skip_special_tokens=False)
            assert text == 'system:be;user:a\nb;assistant:(hm)c[look {"x": 1}];tool:seen;user:and?;A:'
            begun = [*HELLO["messages"], {"role": "assistant", "content": "I am"}]
            await server.json(URL, **{**HELLO, "messages": begun})
            ids = server.core.added[-1].prompt_token_ids
            assert server.engine.get_tokenizer().decode(ids) == "user:hello;assistant:I am"

    run(work)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"temperature": 3}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "other"}}, "other"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"url": "http://x"}}]}]}, "multimodal"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"output_config": {"format": {"type": "yaml"}}}, "output_config.format.type"),
    ],
)
def test_what_cannot_be_served_is_named(more: dict[str, Any], named: str) -> None:
    async def work() -> None:
        async with scripted_server("x") as server:
            for stream in (False, True):
                response = await server.post(URL, **{**HELLO, "stream": stream, **more})
                body = response.json()
                assert response.status_code == 400 and body["type"] == "error"
                assert body["error"]["type"] == "invalid_request_error" and named in body["error"]["message"]

    run(work)


def test_errors_have_anthropics_shape() -> None:
    async def work() -> None:
        async with scripted_server("x", api_key=["k"]) as server:
            refused = (await server.post(URL, **HELLO)).json()
            assert refused["type"] == "error" and refused["error"]["type"] == "authentication_error"
            missing = await server.client.post(URL, json={**HELLO, "model": "other"}, headers={"x-api-key": "k"})
            assert missing.status_code == 404 and missing.json()["error"]["type"] == "not_found_error"

    run(work)
