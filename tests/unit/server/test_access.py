"""Keys and names of requests."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import httpx
import pytest

from octavo.server import access
from octavo.server.access import GUARDED, is_guarded
from tests.unit.server.scripted_server import run, scripted_server

OPEN = {"/health", "/ping", "/version", "/load", "/docs", "/docs/oauth2-redirect", "/openapi.json"}


def test_every_path_is_guarded_or_named_here_as_open() -> None:
    async def work() -> None:
        async with scripted_server("x", api_key=["right", "other"]) as server:
            description = (await server.client.get("/openapi.json")).json()
            num_guarded = 0
            for path, operations in description["paths"].items():
                for method in operations:
                    url = path.replace("{response_id}", "r").replace("{name}", "n")
                    response = await server.client.request(method, url, json={})
                    assert (response.status_code == 401) is (path not in OPEN), path
                    if path in OPEN:
                        continue
                    num_guarded += 1
                    assert response.headers["www-authenticate"] == "Bearer"
                    for wrong in ("Bearer wrong", "Bearer ", "Basic right", "right", "Bearer righ", "Bearer right2"):
                        answer = await server.client.request(method, url, json={}, headers={"Authorization": wrong})
                        assert answer.status_code == 401, wrong
                    for right in (
                        {"Authorization": "Bearer right"},
                        {"authorization": "bearer other"},
                        {"x-api-key": "other"},
                    ):
                        answer = await server.client.request(method, url, json={}, headers=right)
                        assert answer.status_code != 401, right
            assert num_guarded >= 10
            assert (await server.client.options("/v1/models")).status_code == 405  # let through

    run(work)


@pytest.mark.parametrize(
    ("path", "root", "guarded"),
    [
        ("/v1/models", "", True),
        ("/v1", "", True),
        ("/v10", "", False),
        ("/api/v1/models", "/api", True),
        ("/v1/models", "/api", True),
        ("/health", "/v1", False),
        ("/v1/health", "/v1", True),
        ("/tokenize", "", True),
    ],
)
def test_guarded_paths(path: str, root: str, guarded: bool) -> None:
    assert is_guarded({"path": path, "root_path": root}) is guarded


def test_keys_are_compared_in_constant_time_and_all_of_them() -> None:
    """No `==` between what was given and a key, no way out of the loop over them."""
    tree = ast.parse(inspect.getsource(access))
    knows = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "_knows")
    loop = next(node for node in ast.walk(knows) if isinstance(node, ast.For))
    assert not [node for node in ast.walk(loop) if isinstance(node, ast.Compare | ast.If | ast.Break | ast.Return)]
    assert "compare_digest" in ast.unparse(loop)
    assert "/v1" in GUARDED


def test_without_keys_everybody_may_ask() -> None:
    async def work() -> None:
        async with scripted_server("x") as server:
            assert (await server.client.get("/v1/models")).status_code == 200

    run(work)


def test_the_environments_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_API_KEY", "from the environment")

    async def work() -> None:
        async with scripted_server("x") as server:
            assert (await server.client.get("/v1/models")).status_code == 401
        async with scripted_server("x", api_key=["given"]) as server:
            headers = {"Authorization": "Bearer from the environment"}
            assert (await server.client.get("/v1/models", headers=headers)).status_code == 401

    run(work)


def test_refusals_can_be_read_by_pages_of_allowed_origins() -> None:
    async def work() -> None:
        async with scripted_server("x", api_key=["k"], allowed_origins=["http://page"]) as server:
            refused = await server.client.get("/v1/models", headers={"Origin": "http://page"})
            assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "http://page"
            asked = {"Origin": "http://page", "Access-Control-Request-Method": "POST"}
            assert (await server.client.options("/v1/chat/completions", headers=asked)).status_code == 200
            other = await server.client.get("/health", headers={"Origin": "http://elsewhere"})
            assert "access-control-allow-origin" not in other.headers

    run(work)


def test_names_of_requests() -> None:
    async def name(client: httpx.AsyncClient, **headers: Any) -> str:
        return (await client.get("/version", headers=headers)).headers["x-request-id"]

    async def work() -> None:
        async with scripted_server("x") as server:
            assert await name(server.client, **{"X-Request-Id": "mine-1"}) == "mine-1"
            ours = await name(server.client)
            assert len(ours) == 32 and ours != await name(server.client)
            assert len(await name(server.client, **{"X-Request-Id": "x" * 500})) == 32
            refused = await server.client.get("/nowhere", headers={"X-Request-Id": "lost"})
            assert refused.status_code == 404 and refused.headers["x-request-id"] == "lost"

    run(work)
