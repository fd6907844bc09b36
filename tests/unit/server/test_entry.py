"""What `octavo serve` does first."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.config.options import make_options
from octavo.config.serve_options import ServeOptions
from octavo.engine.launch import Supervisor
from octavo.errors import ConfigurationError
from octavo.server import entry

LISTEN = ServeOptions(host="127.0.0.1", port=0)


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, one after the other."""
    happened: list[str] = []

    class Watched:
        def __init__(self) -> None:
            happened.append("engine")

        def stop(self) -> None:
            happened.append("stop")

    def serve(options: Any, serve_options: Any, sock: socket.socket, supervisor: Watched) -> int:
        with socket.create_connection(sock.getsockname(), timeout=5):
            happened.append("serve")
        return 7

    def load(name: str) -> Any:
        happened.append(name)
        return SimpleNamespace(serve=serve)

    monkeypatch.setattr(entry, "Supervisor", Watched)
    monkeypatch.setattr(entry, "import_module", load)
    return happened


@pytest.mark.parametrize(
    ("cpus", "expected"),
    [
        ({0, 1}, ["engine", "octavo.server.run", "serve", "stop"]),
        ({0}, ["octavo.server.run", "engine", "serve", "stop"]),
    ],
)
def test_the_port_is_open_first_and_the_engine_starts_beside_imports(
    cpus: set[int],
    expected: list[str],
    order: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(entry, "affinity", lambda: cpus)
    assert entry.serve(make_options({}), LISTEN) == 7
    assert order == expected


def test_what_fails_leaves_no_engine(order: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise ConfigurationError("ssl_keyfile cannot be read")

    monkeypatch.setattr(entry, "affinity", lambda: {0, 1})
    monkeypatch.setattr(entry, "import_module", lambda name: SimpleNamespace(serve=fail))
    with pytest.raises(ConfigurationError, match="ssl_keyfile"):
        entry.serve(make_options({}), LISTEN)
    assert order == ["engine", "stop"]


def test_an_engine_without_a_configuration_ends_at_once() -> None:
    supervisor = Supervisor()
    while supervisor.status.pid is None:
        time.sleep(0.01)
    began = time.monotonic()
    supervisor.stop()
    supervisor.stop()
    assert time.monotonic() - began < 4.0, "it was waited for"


def test_nothing_heavy_comes_before_the_port() -> None:
    code = (
        "import sys, octavo.cli.serve, octavo.server.entry;"
        "print([name for name in ('torch', 'numpy', 'fastapi', 'uvicorn', 'tokenizers', 'tqdm', 'jinja2', 'asyncio')"
        " if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
