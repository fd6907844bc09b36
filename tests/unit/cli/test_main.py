from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import octavo
from octavo.cli import main as cli
from octavo.cli.arguments import add_engine_arguments, options_from
from octavo.errors import CheckpointError, ConfigurationError, InvalidRequest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A subcommand `try` that takes every option and remembers what it got; `raises` is raised by it."""
    state = SimpleNamespace(args=None, raises=None)

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("prompt", nargs="?")
        parser.add_argument("--stream", action="store_true")
        add_engine_arguments(parser)

    def main(args: argparse.Namespace) -> int:
        if state.raises is not None:
            raise state.raises
        state.args = args
        return 0

    module = SimpleNamespace(add_arguments=add_arguments, main=main)
    monkeypatch.setattr(cli.Command, "load", lambda self: module)
    monkeypatch.setitem(cli.COMMANDS, "try", cli.Command("", "Try."))
    return state


# ---- starting


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["doctor", "--help"], ["pull", "--help"], ["nonsense"]]
)
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    code = (
        "import sys; from octavo.cli.main import main; status = main(sys.argv[1:]); "
        "print('heavy:', sorted({'torch', 'numpy', 'transformers', 'tokenizers', 'gguf'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "heavy: []"


def test_help_appears_in_well_under_a_second() -> None:
    seconds = []
    for _ in range(3):  # the fastest of three: other work on the machine must not fail this
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", "octavo", "--help"], cwd=ROOT, capture_output=True, check=True)
        seconds.append(time.monotonic() - start)
    assert min(seconds) < 0.8


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        assert cli.main(arguments) == 0
        text = capsys.readouterr().out
        assert all(f"  {name} " in text and command.text in text for name, command in cli.COMMANDS.items())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"octavo {octavo.__version__}\n"


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_keeps_the_contract(name: str) -> None:
    module = importlib.import_module(cli.COMMANDS[name].module)
    parser = cli.make_parser(name, module)
    assert callable(module.main)
    assert parser.format_help().startswith(f"usage: octavo {name}")


# ---- wrong command lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "error: unknown command rnu; did you mean run?"),
        (["--versoin"], "error: unknown flag --versoin; did you mean --version?"),
        (["zzz"], "error: unknown command zzz (see octavo --help)"),
        (["try", "--max-model-length", "5"], "error: unknown flag --max-model-length; did you mean --max-model-len?"),
        (["try", "--zzzzzz"], "error: unknown flag --zzzzzz (see octavo try --help)"),
        (["try", "a", "b"], "error: unexpected argument 'b'"),
        (["try", "--seed"], "error: argument --seed: expected one argument"),
        (["try", "--seed", "x"], "error: --seed must be a whole number between 0 and 2**63 - 1, got 'x'"),
        (["try", "--dtype", "int8"], "error: --dtype must be one of auto, float32"),
        (["try", "--max-num-seqs=0"], "error: --max-num-seqs must be a whole number of at least 1, got 0"),
        (["try", "--hf-overrides", "[1]"], "error: --hf-overrides must be a JSON object"),
        (["try", "--hf-overrides"], "error: --hf-overrides needs a value"),
    ],
)
def test_usage_errors_are_one_line_and_status_2(
    command: SimpleNamespace, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and command.args is None
    assert captured.err.startswith(message) and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CheckpointError("two\nlines"), 1),
        (InvalidRequest("bad prompt"), 1),
        (ConfigurationError("they contradict"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_are_one_line_and_a_status(
    command: SimpleNamespace, capsys: pytest.CaptureFixture[str], error: BaseException, status: int
) -> None:
    command.raises = error
    assert cli.main(["try"]) == status
    expected = "" if status == 130 else f"error: {' '.join(str(error).split())}\n"
    assert capsys.readouterr().err == expected


def test_an_error_of_ours_is_not_hidden(command: SimpleNamespace) -> None:
    command.raises = AssertionError("a bug")
    with pytest.raises(AssertionError):
        cli.main(["try"])


# ---- options


def parsed(command: SimpleNamespace, *arguments: str) -> Any:
    assert cli.main(["try", *arguments]) == 0
    return options_from(command.args)


def test_options_come_from_flags(command: SimpleNamespace) -> None:
    options = parsed(
        command, "hi", "--kv-cache-memory-bytes", "1GiB", "--max_model_len=32k", "--watermark", "0.1", "-m", "/m"
    )
    assert command.args.prompt == "hi"
    assert (options.kv_cache_memory_bytes, options.max_model_len, options.watermark) == (2**30, 32000, 0.1)
    assert options.model == "/m"


def test_flags_that_are_not_given_leave_the_defaults(command: SimpleNamespace) -> None:
    assert parsed(command) == type(parsed(command))()


@pytest.mark.parametrize(
    ("arguments", "value"), [([], None), (["--enable-prefix-caching"], True), (["--no-enable-prefix-caching"], False)]
)
def test_switches(command: SimpleNamespace, arguments: list[str], value: bool | None) -> None:
    assert parsed(command, *arguments).enable_prefix_caching is value


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--hf-overrides", '{"a": 1}'], {"a": 1}),
        (["--hf-overrides.a=1"], {"a": 1}),
        (["--hf_overrides.a", "1"], {"a": 1}),
        (
            ["--hf-overrides.a.b=0.5", "--hf-overrides.a.c=text", "--hf-overrides.d=[1,2]"],
            {"a": {"b": 0.5, "c": "text"}, "d": [1, 2]},
        ),
        (['--hf-overrides={"a": {"b": 1}}', "--hf-overrides.a.c=2"], {"a": {"b": 1, "c": 2}}),
    ],
)
def test_json_options_by_parts(command: SimpleNamespace, arguments: list[str], value: dict[str, Any]) -> None:
    assert parsed(command, *arguments).hf_overrides == value


def test_what_follows_two_hyphens_is_left_alone(command: SimpleNamespace) -> None:
    parsed(command, "--", "--hf-overrides.a=1")
    assert command.args.prompt == "--hf-overrides.a=1"


def test_a_prompt_with_dots_equals_and_underscores_is_left_alone(command: SimpleNamespace) -> None:
    parsed(command, "what_is a.b=c?")
    assert command.args.prompt == "what_is a.b=c?"


def test_explain_prints_reasons_and_does_not_start(
    command: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 99,
        "max_position_embeddings": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cli.main(["try", "-m", str(tmp_path), "--load-format", "dummy", "--explain", "--max-num-seqs", "3"]) == 0
    text = capsys.readouterr().out
    assert command.args is None
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert "as asked" in lines["max_num_seqs"] and "64" in lines["max_model_len"] and "dtype" in lines
    assert "2 layers of 4 heads of 8" in lines["attention_backend"] and "2 attention layers" in lines["kept"]
