"""One server for most tests, and clients of it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.server.serving import Process, serving, until_ready
from tests.tiny_model import write_tiny_model

if TYPE_CHECKING:  # they take a second each, which most tests need not wait for
    import anthropic
    import openai


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def server(tiny_model: Path) -> Iterator[Process]:
    with serving(tiny_model, "--served-model-name", "tiny", "alias", "--enable-prompt-tokens-details") as process:
        with httpx.Client(base_url=process.url) as client:
            until_ready(client)
        yield process
        assert process.process.poll() is None, process.log
        assert "Traceback" not in process.log, process.log


@pytest.fixture
def http(server: Process) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture
def openai_client(server: Process) -> Iterator[openai.OpenAI]:
    with import_module("openai").OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30
    ) as client:
        yield client


@pytest.fixture
def anthropic_client(server: Process) -> Iterator[anthropic.Anthropic]:
    with import_module("anthropic").Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=30) as client:
        yield client
