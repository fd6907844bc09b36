"""Tool calls and reasoning, end to end with the published clients: the core is scripted, the parsers are real."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
import uvicorn

from octavo.config.serve_options import make_serve_options
from octavo.engine.async_engine import AsyncEngine
from octavo.server.app import make_app
from octavo.server.state import ServedModel, ServerState
from tests.unit.engine.scripted import byte_level_tokenizer, scripted_frontend
from tests.unit.server.scripted_server import TEMPLATE

ANSWER = 'looking\n</think>\n\nI look. <tool_call>\n{"name": "look", "arguments": {"place": "café"}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}}}
HELLO: Any = [{"role": "user", "content": "where?"}]
BEGUN = {"chat_template_kwargs": {"begin": "<think>\n"}}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    tokenizer = byte_level_tokenizer()
    assert tokenizer.eos_token_id is not None
    ids = [*tokenizer.encode(ANSWER), tokenizer.eos_token_id]
    frontend, _ = scripted_frontend(lambda submit: ids, tokenizer, chat_template=TEMPLATE)
    options = make_serve_options(
        {"served_model_name": ["m"], "tool_call_parser": "hermes", "reasoning_parser": "qwen3"}
    )
    engine, state = AsyncEngine.from_frontend(frontend), ServerState(options)
    server = uvicorn.Server(uvicorn.Config(make_app(state), port=0, lifespan="off", ws="none", log_config=None))

    async def serve() -> None:
        state.served.set_result(ServedModel.of(engine, options))
        await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()
    engine.shutdown()


def test_openai_chat(url: str) -> None:
    tools: Any = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        settings: Any = {"model": "m", "messages": HELLO, "tools": tools, "tool_choice": "auto", "extra_body": BEGUN}
        choice = client.chat.completions.create(**settings).choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.tool_calls is not None
        call: Any = choice.message.tool_calls[0]
        assert call.function.name == "look" and call.function.arguments == '{"place": "café"}'
        assert choice.message.model_extra is not None and choice.message.model_extra["reasoning"].strip() == "looking"
        with client.chat.completions.stream(**settings) as stream:
            streamed: Any = stream.get_final_completion().choices[0]
        assert streamed.message.content == choice.message.content and streamed.finish_reason == "tool_calls"
        assert streamed.message.tool_calls[0].function.arguments == call.function.arguments
        answered: Any = [
            *HELLO,
            choice.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "there"},
        ]
        assert client.chat.completions.create(**{**settings, "messages": answered}).choices[0].message.tool_calls


def test_openai_responses(url: str) -> None:
    tools: Any = [{"type": "function", "name": "look", "parameters": SCHEMA, "strict": False}]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        settings: Any = {"model": "m", "input": "where?", "tools": tools, "extra_body": BEGUN}
        answer = client.responses.create(**settings)
        assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"]
        call: Any = answer.output[-1]
        assert (call.name, call.arguments) == ("look", '{"place": "café"}')
        with client.responses.stream(**settings) as stream:
            final: Any = stream.get_final_response()
        assert final.output[-1].arguments == call.arguments and final.output_text == answer.output_text
        output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "there"}]
        client.responses.create(**{**settings, "input": output, "previous_response_id": answer.id})


def test_anthropic(url: str) -> None:
    tools: Any = [{"name": "look", "input_schema": SCHEMA}]
    with anthropic.Anthropic(base_url=url, api_key="none") as client:
        settings: Any = {"model": "m", "max_tokens": 200, "messages": HELLO, "tools": tools, "extra_body": BEGUN}
        answer = client.messages.create(**settings)
        assert [block.type for block in answer.content] == ["thinking", "text", "tool_use"]
        call: Any = answer.content[-1]
        assert call.input == {"place": "café"} and answer.stop_reason == "tool_use"
        with client.messages.stream(**settings) as stream:
            final: Any = stream.get_final_message()
        assert [block.type for block in final.content] == ["thinking", "text", "tool_use"]
        assert final.content[-1].input == call.input and final.content[1].text == answer.content[1].text  # type: ignore[union-attr]
        result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "there"}
        messages = [*HELLO, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
        client.messages.create(**{**settings, "messages": messages})
