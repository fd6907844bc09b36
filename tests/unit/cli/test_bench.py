"""Benchmarks measure what they say: the published workloads, honest figures, every token counted."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.cli import bench
from octavo.cli.arguments import Parser, UsageError
from octavo.cli.bench.figures import distribution, percentile, repetitions
from octavo.cli.bench.measure import Latency, Throughput, run_all
from octavo.cli.bench.workloads import WORKLOADS, make_workload, uniform
from octavo.errors import RequestFailed
from tests.unit.engine.scripted import echo, scripted_frontend


@pytest.mark.parametrize(
    ("name", "num_requests", "num_in", "num_out"),
    [
        ("single", 1, 128, 256),
        ("mixed", 256, 145_207, 146_707),
        ("chat", 1000, 213_427, 217_724),
        ("prefill", 16, 131_072, 16),
        ("prefix", 256, 540_672, 16_384),
        ("longctx", 8, 128_000, 2_048),
        ("one-stream", 1, 128, 128),
        ("prefill-1024", 1, 1024, 1),
        ("batch", 64, 18_493, 64 * 128),
        ("shared-prefix", 64, 64 * 544, 64 * 32),
    ],
)
def test_the_totals_are_the_published_ones(name: str, num_requests: int, num_in: int, num_out: int) -> None:
    assert name in WORKLOADS
    workload = make_workload(name)
    assert len(workload.lengths) == num_requests
    assert (workload.num_prompt_tokens, workload.num_output_tokens) == (num_in, num_out)
    assert workload.temperature == (0.6 if name == "mixed" else 0.0)


def test_prompts_are_new_in_each_repetition_and_fit_the_vocabulary() -> None:
    workload = make_workload("shared-prefix")
    first, again, second = workload.draw(0, 60_000), workload.draw(0, 60_000), workload.draw(1, 60_000)
    assert first == again and first != second
    assert [len(prompt) for prompt in first] == [544] * 64
    assert len({tuple(prompt[:512]) for prompt in first}) == 1 and len({tuple(prompt) for prompt in first}) == 64
    assert first[0][0] != second[0][0] or first[0][:512] != second[0][:512]
    assert max(max(prompt) for prompt in workload.draw(0, 100)) < 100
    draw = random.Random(101)  # 100 + repetition
    assert make_workload("single").draw(1, 151_936)[0] == [draw.randrange(10, 50_000) for _ in range(128)]


def test_figures() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5 and percentile([7.0], 99) == 7.0
    figures = distribution([0.001, 0.002, 0.003], 1000)
    assert (figures["mean"], figures["p50"], figures["max"]) == (2.0, 2.0, 3.0)
    assert distribution([]) == {}
    assert repetitions([2.0, 1.0, 1.5]) == {
        "seconds": [2.0, 1.0, 1.5],
        "best_seconds": 1.0,
        "median_seconds": 1.5,
        "spread": 1.0,
    }


def test_throughput_counts_requests_tokens_and_steps() -> None:
    frontend, core = scripted_frontend(echo)
    run, told = Throughput(frontend, uniform(5, 20, 7)), []
    run_all([run], 2, told.append)
    report = run.report()
    assert len(report["seconds"]) == 2 and len(told) == 2
    assert report["output_tokens_per_second"] == pytest.approx(35 / min(run.seconds), rel=1e-3)
    assert report["steps"] == 14  # of the repetitions, not of the warm-up
    assert report["host_ms_per_step"]["schedule"]["p50"] == 0.1
    assert report["prompt_tokens_from_cache"] == [80, 80]
    assert len({tuple(submit.prompt_token_ids) for submit in core.added[-10:]}) == 10


def test_a_run_with_missing_tokens_is_no_result() -> None:
    frontend, core = scripted_frontend(echo)
    run = Throughput(frontend, uniform(2, 4, 5))
    core.failures["0"] = 2
    with pytest.raises(RequestFailed, match="not finite"):
        run.repeat(0)


def test_latency_sees_every_token() -> None:
    frontend, _ = scripted_frontend(echo)
    run = Latency(frontend, uniform(3, 4, 6))
    run_all([run], 2, lambda text: None)
    assert (len(run.first), len(run.between), len(run.whole)) == (6, 30, 6)
    assert all(first <= whole for first, whole in zip(run.first, run.whole, strict=True))
    assert {"time_to_first_token_ms", "inter_token_latency_ms", "request_latency_ms"} <= set(run.report())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["latency", "--workload", "single", "--input-len", "3"], "--workload excludes"),
        (["startup", "--workload", "single"], "no meaning for startup"),
        (["latency", "--compare", "transformers"], "--compare is for throughput"),
        (["latency", "--shape", "tiny", "--model", "x"], "--shape and --model"),
        (["latency", "--input-len", "0"], "positive whole number"),
        (["speed"], "invalid choice"),
    ],
)
def test_what_cannot_be_measured_is_said(flags: list[str], words: str) -> None:
    parser = Parser(prog="octavo bench")
    bench.add_arguments(parser)
    with pytest.raises(UsageError, match=words):
        bench.main(parser.parse(flags))


@pytest.mark.parametrize("command", ["run", "chat", "bench"])
def test_help_needs_no_torch(command: str) -> None:
    code = (
        "import sys; from octavo.cli.main import main; status = main([sys.argv[1], '--help']);"
        "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--max-model-len" in done.stdout


def test_a_benchmark_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="octavo bench")
    bench.add_arguments(parser)
    file = tmp_path / "report.json"
    flags = ["throughput", "--shape", "tiny", "--num-requests", "3", "--input-len", "5", "--output-len", "4"]
    flags += ["--repetitions", "1", "--max-model-len", "128", "--num-gpu-blocks-override", "64", "--output", str(file)]
    assert bench.main(parser.parse(flags)) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(file.read_text())
    assert report["workload"]["output_tokens"] == 12 and report["weights"] == "dummy"
    assert report["octavo"]["steps"] >= 4
