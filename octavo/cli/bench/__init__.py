"""`octavo bench latency|throughput|startup`: figures as JSON on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import octavo
from octavo.cli.arguments import UsageError, add_engine_arguments, options_from
from octavo.cli.bench.workloads import SHAPES, WORKLOADS, Workload, make_workload, uniform
from octavo.config.options import Options
from octavo.errors import ConfigurationError
from octavo.telemetry.log import setup_logging

_DEFAULT_WORKLOADS = {"latency": "one-stream", "throughput": "batch"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=("latency", "throughput", "startup"), help="What to measure.")
    parser.add_argument("--workload", choices=WORKLOADS, help="Default: one-stream for latency, batch for throughput.")
    parser.add_argument("--num-requests", type=_count, metavar="N", help="Instead of a workload: this many requests,")
    parser.add_argument("--input-len", type=_count, metavar="N", help="each with a prompt of so many tokens")
    parser.add_argument("--output-len", type=_count, metavar="N", help="and so many tokens to generate.")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="Random weights of this shape instead of a model.")
    parser.add_argument("--repetitions", type=_count, default=3, metavar="N", help="(default: 3)")
    parser.add_argument(
        "--compare", choices=("transformers",), help="Throughput: run it through transformers too, and print the ratio."
    )
    parser.add_argument("--output", metavar="FILE", help="Write the JSON to a file as well.")
    add_engine_arguments(parser)


def main(args: argparse.Namespace) -> int:
    setup_logging("WARNING")
    options, shape = _model(args)
    if args.kind == "startup":
        report = _startup(args, options, shape)
    else:
        report = _run(args, options, shape)
    text = json.dumps(report, indent=2)
    print(text)
    if args.output is not None:
        try:
            Path(args.output).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"--output {args.output} cannot be written: {error.strerror}") from None
    return 0


def _model(args: argparse.Namespace) -> tuple[Options, dict[str, Any] | None]:
    """The options, and the shape for random weights if one is named."""
    options = options_from(args)
    if args.shape is None:
        return options, None
    if options.model is not None:
        raise UsageError("--shape and --model exclude each other", "octavo bench")
    return replace(options, load_format="dummy"), SHAPES[args.shape]


def _workload(args: argparse.Namespace) -> Workload:
    own = (args.num_requests, args.input_len, args.output_len)
    if own == (None, None, None):
        return make_workload(args.workload or _DEFAULT_WORKLOADS[args.kind])
    if args.workload is not None:
        raise UsageError("--workload excludes --num-requests, --input-len and --output-len", "octavo bench")
    return uniform(args.num_requests or 8, args.input_len or 32, args.output_len or 128)


def _startup(args: argparse.Namespace, options: Options, shape: dict[str, Any] | None) -> dict[str, Any]:
    for name in ("workload", "num_requests", "input_len", "output_len", "compare"):
        if getattr(args, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} has no meaning for startup", "octavo bench")
    measure = import_module("octavo.cli.bench.startup").measure_startup
    configured = import_module("octavo.engine.configure").configure(options, shape)  # fetches the model, if need be
    figures = measure(_named(options), shape, args.repetitions, _tell)
    return {**_header(args, configured), "octavo": figures}


def _run(args: argparse.Namespace, options: Options, shape: dict[str, Any] | None) -> dict[str, Any]:
    if args.compare is not None and args.kind != "throughput":
        raise UsageError("--compare is for throughput", "octavo bench")
    workload = _workload(args)
    measure = import_module("octavo.cli.bench.measure")
    configured = import_module("octavo.engine.configure").configure(options, shape)
    frontend = import_module("octavo.engine.frontend").start_frontend(configured)
    try:
        limit = frontend.inputs.limits.max_model_len
        if workload.longest > limit:
            raise ConfigurationError(
                f"workload {workload.name} needs a context of {workload.longest} tokens, the engine has {limit}"
            )
        run = (measure.Throughput if args.kind == "throughput" else measure.Latency)(frontend, workload)
        runs = [run]
        if args.compare is not None:
            peer = import_module("octavo.cli.bench.transformers_peer").TransformersPeer
            runs.append(peer(configured.config.model, workload))
        measure.run_all(runs, args.repetitions, _tell)
        report = {**_header(args, configured), "workload": _described(workload), "octavo": run.report()}
        report["graphs"] = measure.graph_totals(frontend)
        if args.compare is not None:
            report["transformers"] = runs[1].report()
            report["ratio"] = round(min(runs[1].seconds) / min(run.seconds), 3)
            _tell(f"octavo is {report['ratio']} times as fast as transformers {runs[1].version}")
        return report
    finally:
        frontend.client.shutdown()


def _header(args: argparse.Namespace, configured: Any) -> dict[str, Any]:
    config = configured.config
    return {
        "benchmark": args.kind,
        "version": octavo.__version__,
        "model": args.shape or config.model.checkpoint.name,
        "weights": config.model.load_format,
        "dtype": config.model.dtype,
        "platform": configured.platform.description,
        "threads": config.machine.threads,
        "torch": import_module("torch").__version__,
        "max_num_seqs": config.scheduler.max_num_seqs,
        "max_num_batched_tokens": config.scheduler.max_num_batched_tokens,
        "steps_in_flight": config.scheduler.depth,
    }


def _described(workload: Workload) -> dict[str, Any]:
    return {
        "name": workload.name,
        "requests": len(workload.lengths),
        "prompt_tokens": workload.num_prompt_tokens,
        "output_tokens": workload.num_output_tokens,
        "shared_tokens": workload.shared,
        "temperature": workload.temperature,
    }


def _named(options: Options) -> dict[str, Any]:
    """What differs from the defaults."""
    default = Options()
    names = [option.name for option in fields(Options)]
    return {name: getattr(options, name) for name in names if getattr(options, name) != getattr(default, name)}


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


_count.__name__ = "positive whole number"  # argparse names it in errors


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
