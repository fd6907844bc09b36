"""`octavo serve` as far as its command line goes."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.cli import main as cli
from octavo.cli import serve
from octavo.config.serve_options import ServeOptions, make_serve_options, serve_rows
from octavo.errors import ConfigurationError
from octavo.server.sockets import listening


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What a command line comes to, without serving."""
    state = SimpleNamespace(options=None, serving=None)

    def take(options: Any, serving: Any) -> int:
        state.options, state.serving = options, serving
        return 0

    def load(name: str) -> Any:
        return SimpleNamespace(serve=take) if name == "octavo.server.entry" else __import__(name)

    monkeypatch.setattr(serve, "import_module", load)
    return state


def test_flags(served: SimpleNamespace) -> None:
    flags = '--api-key a b --api-key c --port 9000 --served-model-name x y --max-model-len 4k --allowed-origins ["*"]'
    assert cli.main(["serve", "some/model", *flags.split()]) == 0
    options: ServeOptions = served.serving
    assert options.api_key == ["a", "b", "c"] and options.served_model_name == ["x", "y"]
    assert options.port == 9000 and options.allowed_origins == ["*"] and options.allowed_methods == ["*"]
    assert served.options.model == "some/model" and served.options.max_model_len == 4000
    assert cli.main(["serve"]) == 0 and served.options.model is None and served.serving == ServeOptions()


def test_a_file_of_flags_below_the_command_line(served: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: m\nport: 1234\nserved-model-name: one\nmax_model_len: 8k\nhf-overrides: {a: 1}\n")
    assert cli.main(["serve", "--config", str(file), "--port", "5"]) == 0
    assert served.serving.port == 5 and served.serving.served_model_name == ["one"]
    assert served.options.model == "m" and served.options.max_model_len == 8000
    assert served.options.hf_overrides == {"a": 1}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--served-model-nam", "x"], "did you mean --served-model-name?"),
        (["--port", "70000"], "--port must be a whole number between 0 and 65535, got 70000"),
        (["--ssl-keyfile", "k"], "ssl_keyfile and ssl_certfile are needed together"),
        (["--enable-ssl-refresh"], "enable_ssl_refresh needs ssl_keyfile and ssl_certfile"),
        (["--ssl-keyfile", "k", "--ssl-certfile", "c", "--ssl-cert-reqs", "1"], "ssl_cert_reqs needs ssl_ca_certs"),
        (["--root-path", "x"], "root_path must begin with /"),
        (["--shutdown-timeout", "-1"], "--shutdown-timeout must be a number of at least 0"),
        (["--config", "/nowhere"], "config: /nowhere cannot be read"),
        (["--config", "BAD"], "there is no option prot; did you mean port?"),
        (["--config", "LIST"], "must be a mapping of flags to values"),
        (["--config", "TYPE"], "port must be a whole number between 0 and 65535, got 'x'"),
    ],
)
def test_what_is_wrong_is_one_line(
    served: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    for name, text in (("BAD", "prot: 1"), ("LIST", "[1]"), ("TYPE", "port: x")):
        (tmp_path / name).write_text(text)
    flags = [str(tmp_path / flag) if flag in ("BAD", "LIST", "TYPE") else flag for flag in flags]
    assert cli.main(["serve", *flags]) == 2 and served.serving is None
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_every_option_is_a_flag() -> None:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    flags = parser._option_string_actions
    assert all(row.flag in flags for row in serve_rows().values()) and "--config" in flags


def test_sockets(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening(make_serve_options({"uds": str(path)})):
        assert path.exists()
        with pytest.raises(ConfigurationError, match="cannot listen on uds"), listening(ServeOptions(uds=str(path))):
            pass
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as left:  # by a server that was killed
        left.bind(str(path))
    with listening(ServeOptions(uds=str(path))):
        pass
    path.write_text("precious")
    with pytest.raises(ConfigurationError), listening(ServeOptions(uds=str(path))):
        pass
    assert path.read_text() == "precious"
    with listening(ServeOptions(host="127.0.0.1", port=0)) as sock:
        taken = ServeOptions(host="127.0.0.1", port=sock.getsockname()[1])
        with pytest.raises(ConfigurationError, match=r"cannot listen on 127\.0\.0\.1 port"), listening(taken):
            pass
    with (
        pytest.raises(ConfigurationError, match=r"host no-such-host\.invalid"),
        listening(ServeOptions(host="no-such-host.invalid")),
    ):
        pass
