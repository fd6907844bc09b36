"""Every endpoint, asked what its own description allows and what it does not: no 500, no hang, no dead engine."""

from __future__ import annotations

from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from octavo.config.serve_options import make_serve_options
from octavo.server.app import make_app
from octavo.server.state import ServerState
from tests.server.serving import Process

# The framework answers these on its own to what is no request for an endpoint at all.
FRAMEWORK = {405, 413}
MOST = {"n": 3, "best_of": 3, "max_tokens": 8, "max_completion_tokens": 8, "max_output_tokens": 8}
ANY = {"type": ["string", "number", "boolean", "null"]}


def small(description: dict[str, Any]) -> dict[str, Any]:
    """The same description, but requests have few items and free fields have simple values: most of the time would
    go into making up large ones. Sizes and depths of requests have a test of their own below."""
    operations = [operation for path in description["paths"].values() for operation in path.values()]
    schemas = description["components"]["schemas"]
    asked, answered = (
        reached({name for operation in operations for name in named(operation.get(part, {}))}, schemas)
        for part in ("requestBody", "responses")
    )
    assert len(asked - answered) > 10
    for name in asked - answered:
        shrink(schemas[name])
    return description


def named(node: Any) -> set[str]:
    """Of the schemas that a part of the description refers to."""
    if isinstance(node, list):
        return {name for part in node for name in named(part)}
    if not isinstance(node, dict):
        return set()
    own = {str(node["$ref"]).rpartition("/")[2]} if "$ref" in node else set()
    return own | {name for part in node.values() for name in named(part)}


def reached(names: set[str], schemas: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    while names - found:
        new = names - found
        found |= new
        names = {name for one in new for name in named(schemas[one])}
    return found


def shrink(node: Any) -> None:
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        shrink(part)
    if isinstance(node, dict) and node.get("type") == "array":
        node.setdefault("maxItems", 3)
    if isinstance(node, dict) and node.get("additionalProperties") is True:
        node["additionalProperties"] = {"anyOf": [ANY, {"type": "array", "items": ANY, "maxItems": 2}]}
        if "properties" not in node:
            node["maxProperties"] = 3


SCHEMA = schemathesis.openapi.from_dict(small(make_app(ServerState(make_serve_options({}))).openapi()))
OPERATIONS = {operation.ok().label: operation.ok() for operation in SCHEMA.get_all_operations()}


def cheaply(body: Any) -> Any:
    """The same request, but for how much it asks for."""
    if isinstance(body, dict):
        for name, most in MOST.items():
            if isinstance(body.get(name), int | float) and body[name] > most:
                body[name] = most
        if "messages" in body or "input" in body:
            for name in ("max_tokens", "max_output_tokens"):
                body.setdefault(name, 8)
    return body


def likely(body: Any) -> Any:
    """The same request with messages that a template takes, so that what stands beside them is reached."""
    if isinstance(body, dict):
        for message in body.get("messages") or ():
            message["role"] = "user"
            message.pop("tool_calls", None)
            if not isinstance(message.get("content"), str):
                message["content"] = "the cat"
        for name in ("response_format", "chat_template", "tools", "tool_choice", "logprobs", "top_logprobs", "suffix"):
            body.pop(name, None)
        if isinstance(body.get("model"), str):
            body["model"] = "tiny"
    return body


@pytest.mark.parametrize("label", list(OPERATIONS))
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_an_endpoint(server: Process, label: str, mode: GenerationMode) -> None:
    @hypothesis.settings(
        max_examples=10,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )
    @hypothesis.given(case=OPERATIONS[label].as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        case.body = cheaply(case.body)
        if mode is GenerationMode.POSITIVE and len(repr(case.body)) % 3:
            case.body = likely(case.body)
        response = case.call(base_url=server.url, timeout=20)
        checks = [not_a_server_error]
        if response.status_code not in FRAMEWORK:
            checks.append(status_code_conformance)
            if "text/event-stream" not in response.headers["content-type"][0]:
                checks.append(response_schema_conformance)
        case.validate_response(response, checks=checks)

    try:
        ask()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # nothing can be wrong with a request that takes nothing


def test_the_description_has_every_endpoint() -> None:
    assert {"POST /v1/chat/completions", "POST /v1/messages", "GET /health", "POST /tokenize"} <= set(OPERATIONS)


def test_the_engine_lives_on(server: Process, http: httpx.Client) -> None:
    assert http.get("/health").status_code == 200
    assert http.post("/v1/completions", json={"prompt": "x", "max_tokens": 2}).status_code == 200
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize"]
)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff",
        b'{"a": NaN}',
        b'{"a": "\\ud800"}',
        b"[" * 100_000,
        b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"prompt": ' + b"9" * 5000 + b"}",
        b'{"prompt": [99999999999999999999999]}',
        b'{"prompt": "\\u0000", "stop": "\\u0000", "seed": 1e400}',
        b'{"messages": [{"role": "user", "content": "a", "tool_calls": [5]}], "max_tokens": 1}',
        b'{"messages": [{"role": "\\n{{7*7}}", "content": "{% for i in range(10**9) %}"}], "max_tokens": 1}',
    ],
)  # fmt: skip
def test_bodies_that_no_description_leads_to(http: httpx.Client, path: str, body: bytes) -> None:
    response = http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400), response.text
    assert response.status_code == 200 or response.json()["error"]["message"]
