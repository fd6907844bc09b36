"""Chat completions: what is streamed adds up to what is not; parsers, logprobs, refusals."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from octavo.server.protocol.chat import ChatCompletionChunk
from octavo.telemetry.metrics import Metrics
from octavo.telemetry.recorder import Recorder
from tests.unit.server.scripted_server import Server, run, scripted_server

URL = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 200}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
ANSWER = '<think>hm, 你好</think>so <b>x</b> <call look>{"a": 1}</call><call find>{}</call>'


def added_up(chunks: list[Any]) -> dict[str, Any]:
    """The message that a stream's deltas make."""
    message: dict[str, Any] = {"content": "", "reasoning": "", "tool_calls": []}
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            message["content"] += delta.get("content", "")
            message["reasoning"] += delta.get("reasoning", "")
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(message["tool_calls"]):
                    message["tool_calls"].append({"id": call["id"], "type": call["type"], "function": call["function"]})
                else:
                    known = message["tool_calls"][call["index"]]["function"]
                    known["arguments"] += call["function"]["arguments"]
    return message


@pytest.mark.parametrize("tokens_per_step", [1, 3, 50])
def test_streams_say_what_whole_answers_say(tokens_per_step: int) -> None:
    async def work() -> None:
        async with scripted_server(ANSWER, tokens_per_step) as server:
            whole = (await server.json(URL, tools=TOOLS, **HELLO))["choices"][0]
            chunks = await server.chunks(URL, tools=TOOLS, **HELLO)
            assert chunks.pop() == "[DONE]"
            for chunk in chunks:
                ChatCompletionChunk.model_validate(chunk)
            message = added_up(chunks)
            assert message == {key: whole["message"][key] for key in message}
            assert message["content"] == "so <b>x</b> " and message["reasoning"] == "hm, 你好"
            assert [call["function"] for call in message["tool_calls"]] == [
                {"name": "look", "arguments": '{"a": 1}'},
                {"name": "find", "arguments": "{}"},
            ]
            reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
            assert reasons[-1] == whole["finish_reason"] == "tool_calls" and set(reasons[:-1]) == {None}
            assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}

    run(work)


def test_what_a_request_leaves_out_of_the_answer() -> None:
    async def work() -> None:
        async with scripted_server(ANSWER) as server:
            body = {**HELLO, "tools": TOOLS, "include_reasoning": False, "parallel_tool_calls": False}
            message = (await server.json(URL, **body))["choices"][0]["message"]
            assert message["reasoning"] is None and len(message["tool_calls"]) == 1
            streamed = added_up((await server.chunks(URL, **body))[:-1])
            assert streamed["reasoning"] == "" and len(streamed["tool_calls"]) == 1
            assert "find" not in str(streamed)

    run(work)


def test_tools_reach_the_template_unless_none_shall_be_called() -> None:
    async def work() -> None:
        async with scripted_server("x", enable_auto_tool_choice=True) as server:
            with_tools = await server.json(URL, tools=TOOLS, return_prompt_text=True, **HELLO)
            assert with_tools["prompt_text"].startswith('T[{"type": "function"')
            without = await server.json(URL, tools=TOOLS, tool_choice="none", return_prompt_text=True, **HELLO)
            assert without["prompt_text"] == "user:hello;A:"
        async with scripted_server("x", enable_auto_tool_choice=False) as server:
            assert (await server.post(URL, tools=TOOLS, **HELLO)).json()["error"]["param"] == "tools"

    run(work)


def test_a_prompt_that_begins_the_reasoning() -> None:
    async def work() -> None:
        async with scripted_server("because</think>yes") as server:
            answer = await server.json(URL, chat_template_kwargs={"begin": "<think>\n"}, **HELLO)
            message = answer["choices"][0]["message"]
            assert (message["reasoning"], message["content"]) == ("because", "yes")
            assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0

    run(work)


def test_logprobs_cover_every_token_once_also_of_text_that_is_kept_back() -> None:
    async def work() -> None:
        async with scripted_server("<think>a</think>the end <") as server:
            body = {**HELLO, "logprobs": True, "top_logprobs": 2, "return_token_ids": True}
            whole = (await server.json(URL, **body))["choices"][0]
            content = whole["logprobs"]["content"]
            assert len(content) == len(whole["token_ids"]) and len(content[0]["top_logprobs"]) == 2
            assert all(bytes(entry["bytes"]).decode() == entry["token"] for entry in content)
            chunks = (await server.chunks(URL, **body))[:-1]
            choices = [choice for chunk in chunks for choice in chunk["choices"]]
            streamed = [entry for choice in choices for entry in (choice["logprobs"] or {}).get("content", ())]
            assert streamed == content
            assert [i for choice in choices for i in choice.get("token_ids", ())] == whole["token_ids"]
            assert chunks[0]["prompt_token_ids"]
            as_ids = await server.json(URL, **body, return_tokens_as_token_ids=True)
            entry = as_ids["choices"][0]["logprobs"]["content"][0]
            assert entry["token"] == f"token_id:{whole['token_ids'][0]}"

    run(work)


def test_usage_in_streams() -> None:
    async def usages(server: Server, **options: Any) -> list[Any]:
        chunks = await server.chunks(URL, **HELLO, **options)
        return [chunk.get("usage", "absent") for chunk in chunks[:-1]]

    async def work() -> None:
        async with scripted_server("the cat", enable_prompt_tokens_details=True) as server:
            assert set(await usages(server)) == {"absent"}
            at_the_end = await usages(server, stream_options={"include_usage": True})
            assert set(at_the_end[:-1]) == {None}
            total = at_the_end[-1]
            assert total["total_tokens"] == total["prompt_tokens"] + total["completion_tokens"]
            assert total["prompt_tokens_details"] == {"cached_tokens": 16}
            server.core.before_step = lambda: time.sleep(0.005)
            always = await usages(server, stream_options={"include_usage": True, "continuous_usage_stats": True})
            counts = [usage["completion_tokens"] for usage in always]
            assert counts == sorted(counts) and 0 < counts[0] < counts[-1] == total["completion_tokens"]
        async with scripted_server("the cat", enable_force_include_usage=True) as server:
            assert (await usages(server))[-1]["completion_tokens"] > 1

    run(work)


def test_echo_and_continuing_a_message() -> None:
    async def work() -> None:
        async with scripted_server(" cat") as server:
            messages = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "the"}]
            body = {"messages": messages, "add_generation_prompt": False, "continue_final_message": True, "echo": True}
            answer = await server.json(URL, **body, return_prompt_text=True)
            assert answer["prompt_text"] == "user:say;assistant:the"
            assert answer["choices"][0]["message"]["content"] == "the cat"
            assert added_up((await server.chunks(URL, **body))[:-1])["content"] == "the cat"

    run(work)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"logit_bias": {"1000000": 1}}, "logit_bias"),
        ({"logit_bias": {"one": 1}}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"repetition_detection": {"max_pattern_size": 2}}, "repetition_detection.min_count"),
        ({"repetition_detection": {"size": 2}}, "repetition_detection"),
        ({"stream_interval": 0}, "stream_interval"),
        ({"logits_processors": [{"arguments": {}}]}, "logits_processors.name"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"bad_words": [" "]}, "bad_words"),
        ({"use_beam_search": True, "min_tokens": 2}, "min_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": 2, "temperature": 0}, "n"),
        ({"max_completion_tokens": 0}, "max_tokens"),
        ({"max_tokens": 600}, "max_tokens"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": "hello"}, "messages"),
        ({"seed": 2**63}, "seed"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"request_id": ""}, "request_id"),
    ],
)
def test_what_cannot_be_served_is_named(more: dict[str, Any], param: str) -> None:
    async def work() -> None:
        async with scripted_server("x") as server:
            for body in ({**HELLO, **more}, {**HELLO, "stream": "stream_options" not in more, **more}):
                response = await server.post(URL, **body)
                error = response.json()["error"]
                assert response.status_code == error["code"] == 400 and error["param"] == param, error
                assert error["type"] == "BadRequestError"
            assert not server.core.added

    run(work)


def test_values_that_ask_for_nothing_and_unknown_fields_are_accepted() -> None:
    async def work() -> None:
        async with scripted_server("x") as server:
            await server.json(
                URL, **HELLO, logit_bias={}, bad_words=[], use_beam_search=False, prompt_logprobs=None, user="me",
                length_penalty=1.0, response_format={"type": "text"}, nobody_knows_this=5, tool_choice="auto",
            )  # fmt: skip

    run(work)


def test_defaults_are_the_models_unless_the_request_says_otherwise() -> None:
    async def work() -> None:
        async with scripted_server("x") as server:
            server.engine.frontend.sampling_defaults = {"temperature": 0.5, "top_k": 7, "max_tokens": 9999}
            await server.json(URL, messages=HELLO["messages"], top_k=3)
            params = server.core.added[-1].params
            assert (params.temperature, params.top_k) == (0.5, 3)
            assert params.max_tokens == 512 - len(server.core.added[-1].prompt_token_ids)
            await server.json(URL, **HELLO, temperature=0, seed=5, cache_salt="s", priority=-3)
            submit = server.core.added[-1]
            assert (submit.params.temperature, submit.seed, submit.cache_salt, submit.priority) == (0, 5, "s", -3)

    run(work)


def test_names_of_models_and_answers() -> None:
    async def work() -> None:
        async with scripted_server("x") as server:
            assert (await server.json(URL, **HELLO))["model"] == "m"
            assert (await server.json(URL, model="also", **HELLO))["model"] == "also"
            missing = await server.post(URL, model="other", **HELLO)
            assert missing.status_code == 404 and missing.json()["error"]["type"] == "NotFoundError"
            headers = {"X-Request-Id": "mine"}
            response = await server.client.post(URL, json=HELLO, headers=headers)
            assert response.headers["x-request-id"] == "mine" and response.json()["id"] == "chatcmpl-mine"
            assert (await server.json(URL, request_id="body", **HELLO))["id"] == "chatcmpl-body"

    run(work)


def test_an_error_on_the_way_is_one_event_and_then_done() -> None:
    async def work() -> None:
        async with scripted_server("the cat sat") as server:
            server.core.failures = _Always(2)
            server.core.before_step = lambda: time.sleep(0.02)
            chunks = await server.chunks(URL, **HELLO)
            assert chunks[-1] == "[DONE]" and chunks[-2]["error"]["code"] == 500
            assert all("error" not in chunk for chunk in chunks[:-2])
            whole = await server.post(URL, **HELLO)
            assert whole.status_code == 500 and "not finite" in whole.json()["error"]["message"]
            assert server.state.num_active == 0

    run(work)


class _Always(dict[str, int]):
    """Every request fails after so many tokens."""

    def __init__(self, count: int) -> None:
        self.count = count

    def get(self, name: str, default: Any = None) -> Any:
        return self.count


def test_answers_that_are_searched_for_tool_calls_are_counted() -> None:
    tools = {
        "/v1/chat/completions": [{"type": "function", "function": {"name": "look", "parameters": {}}}],
        "/v1/responses": [{"type": "function", "name": "look", "parameters": {}}],
        "/v1/messages": [{"name": "look", "input_schema": {}}],
    }
    hi = [{"role": "user", "content": "hi"}]
    answers = iter(['<call look>{"a": 1}</call>', "nothing", '<call look>{"a": 1}</call>', "no", "no", "no"] * 2)

    async def work() -> None:
        async with scripted_server(lambda submit: next(answers)) as server:
            server.engine.record_with(Recorder(Metrics("m")))
            for path, offered in tools.items():
                body: dict[str, Any] = (
                    {"messages": hi, "max_tokens": 60} if "responses" not in path else {"input": "hi"}
                )
                for stream in (False, True):
                    asked = {**body, "model": "m", "stream": stream}
                    assert (await server.post(path, **asked, tools=offered)).status_code == 200
            assert (await server.post("/v1/chat/completions", messages=hi)).status_code == 200  # nothing to search for
            recorder = server.engine.recorder
            assert recorder is not None and recorder.metrics is not None
            text = recorder.metrics.render()[0].decode()
            counted = re.findall(r"^octavo:tool_call_parser_invocations_total\{(.*)\} (.*)$", text, re.MULTILINE)
            shown = {(*re.findall(r'(?:mode|outcome|request_type)="(\w+)"', labels), float(value))
                     for labels, value in counted}  # fmt: skip
            assert shown == {
                ("non_streaming", "tool_call", "chat", 1.0),
                ("streaming", "no_tool_call", "chat", 1.0),
                ("non_streaming", "tool_call", "responses", 1.0),
                ("streaming", "no_tool_call", "responses", 1.0),
                ("non_streaming", "no_tool_call", "messages", 1.0),
                ("streaming", "no_tool_call", "messages", 1.0),
            }

    run(work)
