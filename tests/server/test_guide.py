"""The examples of docs/guides/server.md, run as they are but for the address."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from tests.server.serving import ROOT, Process

GUIDE = (ROOT / "docs/guides/server.md").read_text(encoding="utf-8")
EXAMPLES = [block for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL) if block.startswith("curl")]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: re.findall(r"localhost:8000(\S+)", example)[0])
def test_an_example(server: Process, example: str) -> None:
    command = example.replace("http://localhost:8000", server.url).replace("curl", "curl --silent --fail-with-body", 1)
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stdout + result.stderr
    if "data: " in result.stdout:
        assert result.stdout.endswith("data: [DONE]\n\n") and result.stdout.count('"usage":{') == 1
    else:
        assert "error" not in json.loads(result.stdout) or json.loads(result.stdout)["error"] is None


def test_there_are_examples_of_every_endpoint(server: Process) -> None:
    asked = {path for example in EXAMPLES for path in re.findall(r"localhost:8000(\S+)", example)}
    assert {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/models"} <= asked
