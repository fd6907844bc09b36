"""No request makes the server open a file or a connection: what names one is refused by field, or is only text."""

from __future__ import annotations

import json
import re
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.config.serve_options import make_serve_options
from octavo.core.structured import AUTO_ORDER, StructuredOutputsParams
from octavo.errors import InvalidRequest
from octavo.server.app import make_app
from octavo.server.state import ServerState
from octavo.structured.compile import Compiler
from tests.unit.server.scripted_server import run, scripted_server
from tests.unit.structured.small import small_vocabulary

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, COUNT, TOKENIZE = "/v1/messages", "/v1/messages/count_tokens", "/tokenize"
CANARY = "canary-in-a-local-file"
HI = [{"role": "user", "content": "hi"}]

URL = "<<URL>>"  # in a request: what the server must not follow


def chat(*parts: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": [{"type": "text", "text": "see"}, *parts]}]}


def item(*parts: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [{"type": "input_text", "text": "see"}, *parts]}]}


def message(*blocks: Any, **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": "see"}, *blocks]
    return {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": content}], **more}


def source(kind: str) -> dict[str, Any]:
    return {"type": kind, "source": {"type": "url", "url": URL}}


PARTS = [
    {"type": "image_url", "image_url": {"url": URL}},
    {"type": "image_url", "image_url": URL},
    {"type": "video_url", "video_url": {"url": URL}},
    {"type": "audio_url", "audio_url": {"url": URL}},
    {"type": "input_audio", "input_audio": {"data": URL, "format": "wav"}},
    {"type": "file", "file": {"file_id": URL}},
    {"type": "file", "file": {"file_data": URL, "filename": URL}},
    {"type": "image_embeds", "image_embeds": URL},
    {"type": "image_pil", "image_pil": URL},
]
ITEMS = [
    {"type": "input_image", "image_url": URL, "detail": "auto"},
    {"type": "input_image", "file_id": URL},
    {"type": "input_file", "file_url": URL},
    {"type": "input_file", "file_id": URL},
    {"type": "input_file", "file_data": URL, "filename": URL},
    {"type": "input_audio", "input_audio": {"data": URL, "format": "mp3"}},
]
TOOLS = [
    {"type": "mcp", "server_label": "x", "server_url": URL, "require_approval": "never"},
    {"type": "web_search", "search_context_size": "low"},
    {"type": "file_search", "vector_store_ids": [URL]},
    {"type": "code_interpreter", "container": URL},
    {"type": "image_generation", "input_image_mask": {"image_url": URL}},
]

# (path, body, the field that the refusal names)
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    *((path, chat(part), "messages[0].content[1]") for path in (CHAT, TOKENIZE) for part in PARTS),
    (CHAT, chat(PARTS[0], role="tool"), "messages[0].content[1]"),
    (CHAT, {"messages": HI, "chat_template": URL}, "chat_template"),
    (TOKENIZE, {"messages": HI, "chat_template": URL}, "chat_template"),
    (CHAT, {"messages": HI, "chat_template_kwargs": {"chat_template": URL}}, "chat_template_kwargs"),
    (CHAT, {"messages": HI, "web_search_options": {"user_location": URL}}, "web_search_options"),
    (CHAT, {"messages": HI, "audio": {"voice": URL}}, "audio"),
    *((path, {**body, name: value}, name)
      for path, body in ((CHAT, {"messages": HI}), (COMPLETIONS, {"prompt": "hi"}), (RESPONSES, {"input": "hi"}))
      for name, value in (
          ("kv_transfer_params", {"remote_host": URL, "do_remote_prefill": True}), ("ec_transfer_params", {"url": URL}),
          ("mm_processor_kwargs", {"path": URL}), ("media_io_kwargs", {"video": {"path": URL}}),
          ("logits_processors", [URL]), ("vllm_xargs", {"path": URL}),
      )),
    (COMPLETIONS, {"prompt": "hi", "prompt_embeds": URL}, "prompt_embeds"),
    *((RESPONSES, item(part), "input[0].content[1]") for part in ITEMS),
    (RESPONSES, {"input": [{"type": "function_call_output", "call_id": "1", "output": [ITEMS[0]]}]},
     "input[0].output[0]"),
    (RESPONSES, {"input": [{"type": "item_reference", "id": URL}]}, "input[0]"),
    (RESPONSES, {"input": [{"type": "computer_call_output", "call_id": "1", "output": {"image_url": URL}}]}, "input"),
    *((RESPONSES, {"input": "hi", "tools": [tool]}, "tools[0]") for tool in TOOLS),
    (RESPONSES, {"input": "hi", "prompt": {"id": URL}}, "prompt"),
    (RESPONSES, {"input": "hi", "conversation": URL}, "conversation"),
    *((path, message(block), "messages[0].content[1]")
      for path in (MESSAGES, COUNT) for block in (source("image"), source("document"), source("container_upload"))),
    (MESSAGES, message({"type": "tool_result", "tool_use_id": "1", "content": [source("image")]}),
     "messages[0].content[1].content[0]"),
    (MESSAGES, message(system=[source("image")]), "system[0]"),
    (MESSAGES, message(tools=[{"type": "web_fetch_20250910", "name": "web_fetch"}]), "tools[0]"),
    (MESSAGES, message(mcp_servers=[{"type": "url", "url": URL, "name": "x"}]), "mcp_servers"),
    (MESSAGES, message(container={"skills": [URL]}), "container"),
]  # fmt: skip

# Where a URL is only text that the model may read.
TEXT: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": [{"role": "user", "content": URL, "name": URL}], "user": URL, "metadata": {"url": URL}}),
    (CHAT, {"messages": HI, "documents": [{"url": URL, "path": URL}], "chat_template_kwargs": {"begin": URL}}),
    (CHAT, {"messages": HI, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": URL}}}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "image_url": {"url": URL}}]}]}),
    (COMPLETIONS, {"prompt": URL, "image_url": URL, "cache_salt": URL, "request_id": "x", "stop": URL}),
    (RESPONSES, {"input": URL, "instructions": URL, "metadata": {"url": URL}, "safety_identifier": URL}),
    (MESSAGES, message(metadata={"user_id": URL}, system=URL)),
    (TOKENIZE, {"prompt": URL}),
]


@pytest.fixture(scope="module")
def trap() -> Iterator[socket.socket]:
    """Listens, and nobody may come."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def named(body: dict[str, Any], url: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(body).replace(URL, json.dumps(url)[1:-1]))
    return made


def places(trap: socket.socket, folder: Path) -> list[str]:
    file = folder / "secret.txt"
    file.write_text(CANARY)
    return [f"http://127.0.0.1:{trap.getsockname()[1]}/x", file.as_uri(), str(file)]


def test_what_names_a_place_is_refused_by_its_field_and_nobody_goes_there(trap: socket.socket, tmp_path: Path) -> None:
    urls = places(trap, tmp_path)

    async def work() -> None:
        async with scripted_server("x") as server:
            for path, body, field in REFUSED:
                for url in urls:
                    for stream in (False, True) if path not in (COUNT, TOKENIZE) else (False,):
                        answer = await server.post(path, **named({**body, "stream": stream}, url))
                        assert answer.status_code == 400, (path, body, answer.text)
                        error = answer.json()["error"]
                        shown = error["message"] if path in (MESSAGES, COUNT) else error["param"]
                        assert shown.startswith(field), (body, error)
                        assert CANARY not in answer.text
            assert not server.core.added, "none of them reached the engine"

    run(work)
    assert not select.select([trap], [], [], 0)[0], "a URL was followed"


def test_elsewhere_a_place_is_only_text(trap: socket.socket, tmp_path: Path) -> None:
    urls = places(trap, tmp_path)

    async def work() -> None:
        async with scripted_server("x", trust_request_chat_template=True) as server:
            for url in urls:
                for path, body in TEXT:
                    answer = await server.post(path, **named(body, url))
                    assert answer.status_code == 200, (path, body, answer.text)
                # not even where requests may bring templates
                for template in (url, "{% include '" + url + "' %}", "{% import '" + url + "' as x %}{{ x }}",
                                 "{% extends '" + url + "' %}", "{{ open('" + url + "') }}"):  # fmt: skip
                    answer = await server.post(TOKENIZE, messages=HI, chat_template=template, return_token_strs=True)
                    assert answer.status_code in (200, 400), answer.text
                    text = "".join(answer.json().get("token_strs") or ())
                    assert text == url if template == url else not text, (template, text)
            tokenizer = server.engine.get_tokenizer()
            for submit in server.core.added:
                assert CANARY not in tokenizer.decode(submit.prompt_token_ids, skip_special_tokens=False)

    run(work)
    assert not select.select([trap], [], [], 0)[0], "a URL was followed"


@pytest.mark.parametrize("backend", AUTO_ORDER)
def test_no_schema_is_fetched(trap: socket.socket, tmp_path: Path, backend: str) -> None:
    """A form that refers to another place is refused by the compiler, where it would be read."""
    compiler = Compiler(small_vocabulary)
    try:
        for url in places(trap, tmp_path):
            for schema in ({"$ref": url}, {"type": "object", "properties": {"a": {"$ref": f"{url}#/x"}}},
                           {"$schema": url, "$ref": "other.json", "$id": url}):  # fmt: skip
                failure = compiler.compile(StructuredOutputsParams(json=schema), [backend]).exception(20)
                assert isinstance(failure, InvalidRequest), (schema, failure)
    finally:
        compiler.shutdown()
    assert not select.select([trap], [], [], 0)[0], "a URL was followed"


def test_no_field_of_a_request_that_could_name_a_place_is_missing_here() -> None:
    description = make_app(ServerState(make_serve_options({}))).openapi()
    tried = json.dumps([body for _, body, _ in REFUSED])
    suspicious = re.compile(r"url|uri|path|file|dir(ectory)?$|host|template$", re.IGNORECASE)
    found = set()
    for name, schema in description["components"]["schemas"].items():
        if name.endswith(("Request", "Param", "Part", "Item", "Block", "Message", "Tool")):
            found |= {field for field in schema.get("properties", {}) if suspicious.search(field)}
    assert found == {"chat_template"}
    assert all(f'"{field}"' in tried for field in found)
