"""The responses API: events add up to the response; what is kept; background, cancel, conversations."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from octavo.server.protocol.responses import ResponseObject
from octavo.server.response_store import ResponseStore, StoredResponse
from tests.unit.server.scripted_server import Server, run, scripted_server

URL = "/v1/responses"
TOOLS = [{"type": "function", "name": "look", "parameters": {"type": "object"}}]
ANSWER = '<think>hm</think>so <call look>{"a": 1}</call><call find>{}</call>'


def added_up(events: list[Any]) -> list[dict[str, Any]]:
    """The items that a stream's events make, without what only the whole has (ids are compared)."""
    items: list[dict[str, Any]] = []
    for number, event in enumerate(events):
        assert event["sequence_number"] == number
        match event["type"]:
            case "response.output_item.added":
                assert event["output_index"] == len(items)
                items.append(event["item"])
            case "response.content_part.added":
                items[event["output_index"]]["content"].append(event["part"])
            case "response.output_text.delta" | "response.reasoning_text.delta":
                items[event["output_index"]]["content"][event["content_index"]]["text"] += event["delta"]
            case "response.function_call_arguments.delta":
                items[event["output_index"]]["arguments"] += event["delta"]
            case "response.output_item.done":
                items[event["output_index"]]["status"] = event["item"]["status"]
                assert items[event["output_index"]] == event["item"]
    return items


@pytest.mark.parametrize("tokens_per_step", [1, 50])
def test_events_add_up_to_the_response(tokens_per_step: int) -> None:
    async def work() -> None:
        async with scripted_server(ANSWER, tokens_per_step) as server:
            whole = await server.json(URL, input="hello", tools=TOOLS)
            events = await server.chunks(URL, input="hello", tools=TOOLS)
            ResponseObject.model_validate(whole)
            final = events[-1]["response"]
            assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
            assert events[-1]["type"] == "response.completed" and final["status"] == "completed"
            assert added_up(events) == final["output"]
            without_ids = [[{**item, "id": ""} for item in response["output"]] for response in (whole, final)]
            assert without_ids[0] == without_ids[1] and whole["usage"] == final["usage"]
            kinds = [item["type"] for item in whole["output"]]
            assert kinds == ["reasoning", "message", "function_call", "function_call"]
            assert whole["output"][2]["call_id"] == "call_0" and whole["output"][2]["arguments"] == '{"a": 1}'
            assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] > 0

    run(work)


def test_a_conversation_goes_on_from_a_kept_response() -> None:
    async def work() -> None:
        async with scripted_server(ANSWER) as server:
            first = await server.json(URL, input="hello", tools=TOOLS, instructions="be brief")
            output = {"type": "function_call_output", "call_id": "call_0", "output": "seen"}
            await server.json(URL, input=[output], previous_response_id=first["id"], tools=TOOLS)
            ids = server.core.added[-1].prompt_token_ids
            text = server.engine.get_tokenizer().decode(ids, skip_special_tokens=False)
            assert text.endswith('user:hello;assistant:(hm)so [look {"a": 1}][find {}];tool:seen;A:')
            assert "be brief" not in text
            kept = await server.client.get(f"{URL}/{first['id']}")
            assert kept.json() == first
            assert (await server.client.delete(f"{URL}/{first['id']}")).json()["deleted"] is True
            assert (await server.client.get(f"{URL}/{first['id']}")).status_code == 404
            gone = await server.post(URL, input="x", previous_response_id=first["id"])
            assert gone.status_code == 404 and gone.json()["error"]["param"] == "previous_response_id"
            unkept = await server.json(URL, input="hello", store=False)
            assert (await server.client.get(f"{URL}/{unkept['id']}")).status_code == 404

    run(work)


def test_items_of_an_input() -> None:
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "be"}]},
        {"type": "message", "role": "user", "content": "a"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "c"}]},
    ]

    async def work() -> None:
        async with scripted_server("x") as server:
            await server.json(URL, input=items)
            ids = server.core.added[-1].prompt_token_ids
            text = server.engine.get_tokenizer().decode(ids, skip_special_tokens=False)
            assert text == "developer:be;user:a;assistant:(hm)b[look {}];tool:c;A:"

    run(work)


async def until_status(server: Server, response_id: str, wanted: set[str]) -> dict[str, Any]:
    while True:
        response = (await server.client.get(f"{URL}/{response_id}")).json()
        if response["status"] in wanted:
            return response
        await asyncio.sleep(0.01)


def test_in_the_background() -> None:
    async def work() -> None:
        async with scripted_server(ANSWER) as server:
            asked = await server.json(URL, input="hello", background=True, tools=TOOLS)
            assert asked["status"] == "queued" and asked["output"] == []
            done = await until_status(server, asked["id"], {"completed"})
            assert len(done["output"]) == 4
            replayed = await server.client.get(f"{URL}/{asked['id']}?stream=true")
            assert replayed.text.count("event: response.completed") == 1
            later = await server.client.get(f"{URL}/{asked['id']}?stream=true&starting_after=1")
            assert replayed.text.endswith(later.text) and "response.created" not in later.text
            beyond = await server.client.get(f"{URL}/{asked['id']}?stream=true&starting_after=999999")
            assert beyond.text == ""
            streamed = await server.chunks(URL, input="hello", background=True, tools=TOOLS)
            assert streamed[-1]["type"] == "response.completed" and added_up(streamed)
            cancelled = await server.post(f"{URL}/{asked['id']}/cancel")
            assert cancelled.json()["status"] == "completed"  # it was over

    run(work)


def test_cancelling() -> None:
    async def work() -> None:
        async with scripted_server("the cat " * 50) as server:
            server.core.before_step = lambda: time.sleep(0.02)
            asked = await server.json(URL, input="hello", background=True)
            await until_status(server, asked["id"], {"queued", "in_progress"})
            while not server.core.requests:
                await asyncio.sleep(0.01)
            cancelled = await server.post(f"{URL}/{asked['id']}/cancel")
            assert cancelled.json()["status"] == "cancelled"
            while server.core.requests:
                await asyncio.sleep(0.01)
            followed = await server.client.get(f"{URL}/{asked['id']}?stream=true")
            assert "response.completed" not in followed.text
            refused = await server.post(URL, input="x", previous_response_id=asked["id"])
            assert refused.json()["error"]["param"] == "previous_response_id"
            foreground = await server.json(URL, input="x", max_output_tokens=1)
            assert foreground["incomplete_details"] == {"reason": "max_output_tokens"}
            refused = await server.post(f"{URL}/{foreground['id']}/cancel")
            assert refused.status_code == 400

    run(work)


def test_failures() -> None:
    async def work() -> None:
        async with scripted_server("the cat sat") as server:
            server.core.failures = _Always()
            server.core.before_step = lambda: time.sleep(0.02)
            events = await server.chunks(URL, input="x")
            assert events[-1]["type"] == "error" and "not finite" in events[-1]["message"]
            asked = await server.json(URL, input="x", background=True)
            failed = await until_status(server, asked["id"], {"failed"})
            assert failed["error"]["code"] == "server_error"

    run(work)


class _Always(dict[str, int]):
    def get(self, name: str, default: Any = None) -> Any:
        return 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": "a", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"input": "a", "text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"input": "a", "truncation": "auto"}, "truncation"),
        ({"input": "a", "tool_choice": "required"}, "tool_choice"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"input": "a", "background": True, "store": False}, "background"),
        ({"input": "a", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "a", "top_logprobs": 99}, "top_logprobs"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": "a", "conversation": "x"}, "conversation"),
        ({"input": "a", "prompt": {"id": "x"}}, "prompt"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_named(body: dict[str, Any], param: str) -> None:
    async def work() -> None:
        async with scripted_server("x") as server:
            for stream in (False, True):
                response = await server.post(URL, stream=stream, **body)
                assert response.status_code == 400 and response.json()["error"]["param"] == param, response.text

    run(work)


def test_the_store_is_bounded_and_keeps_what_runs() -> None:
    def entry(name: str, status: str = "completed", size: int = 10) -> StoredResponse:
        return StoredResponse({"id": name, "status": status}, [{"content": "x" * size}], store)

    store = ResponseStore(max_responses=3, max_bytes=10_000)
    for name in "abc":
        store.put(entry(name))
    assert store.get("a") is not None  # used, so "b" is the oldest
    store.put(entry("d"))
    assert store.get("b") is None and len(store) == 3
    store.put(entry("running", "in_progress"))
    store.put(entry("large", size=9_000))
    assert store.get("running") is not None and store.get("large") is not None and store.get("a") is None
    assert store.num_bytes <= 10_000
    for name in ("d", "running", "large"):
        store.remove(name)
    assert store.num_bytes == 0 and len(store) == 0
