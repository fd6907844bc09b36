"""`octavo run PROMPT`: one prompt, its answer on stdout as it comes. What else there is to say goes to stderr."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from octavo.cli.arguments import UsageError, add_engine_arguments, options_from
from octavo.cli.sampling_flags import add_sampling_arguments, sampling_settings, streaming_params
from octavo.core.outputs import RequestOutput
from octavo.telemetry.log import setup_logging

if TYPE_CHECKING:
    from octavo.config.options import Options
    from octavo.engine.async_engine import AsyncEngine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="The prompt; - reads it from standard input.")
    parser.add_argument("--system", metavar="TEXT", help="A system message before the prompt.")
    parser.add_argument("--raw", action="store_true", help="Continue the prompt as it is, without the chat template.")
    parser.add_argument("-q", "--quiet", action="store_true", help="Print the answer and nothing else.")
    add_sampling_arguments(parser)
    add_engine_arguments(parser)


def main(args: argparse.Namespace) -> int:
    if args.raw and args.system is not None:
        raise UsageError("--system needs the chat template that --raw leaves out", "octavo run")
    settings = sampling_settings(args)
    prompt = read_prompt(args.prompt)
    setup_logging("ERROR" if args.quiet else "WARNING")
    engine = open_engine(options_from(args), args.quiet)
    try:
        params = streaming_params(engine.frontend.sampling_defaults, settings)
        if args.raw or not engine.inputs.can_chat:
            if args.system is not None:
                raise UsageError("--system needs a chat template, and the model has none", "octavo run")
            outputs = engine.generate(prompt, params)
            if not args.raw:
                note("the model has no chat template: the prompt is continued as it is", args.quiet)
        else:
            messages = [{"role": "user", "content": prompt}]
            if args.system is not None:
                messages.insert(0, {"role": "system", "content": args.system})
            outputs = engine.chat(messages, params)
        figures = asyncio.run(show(outputs))
        note(figures, args.quiet)
    finally:
        engine.shutdown()
    return 0


def read_prompt(argument: str | None) -> str:
    """Raises UsageError if there is none."""
    if argument is None and sys.stdin.isatty():
        raise UsageError('a prompt is needed, such as octavo run "Why is the sky blue?"', "octavo run")
    prompt = sys.stdin.read() if argument in (None, "-") else argument
    assert prompt is not None
    if not prompt.strip():
        raise UsageError("the prompt is empty", "octavo run")
    return prompt


def open_engine(options: Options, quiet: bool = False) -> AsyncEngine:
    """Says which model, and why, before it loads. Imports the engine only here: help must not wait for it."""
    configured = import_module("octavo.engine.configure").configure(options)
    for reason in configured.resolved.reasons:
        if reason.option in ("model", "dtype"):
            note(f"{reason.option}: {reason.value} ({reason.why})", quiet)
    frontend = import_module("octavo.engine.frontend").start_frontend(configured)
    engine: Any = import_module("octavo.engine.async_engine").AsyncEngine
    opened: AsyncEngine = engine.from_frontend(frontend)
    return opened


async def show(outputs: AsyncIterator[RequestOutput]) -> str:
    """Writes text as it comes. Returns the figures of the run in words."""
    started, last, num_tokens, num_prompt_tokens, ends_line = time.monotonic(), 0.0, 0, 0, True
    first: float | None = None
    reason: str | None = None
    async for output in outputs:
        last = time.monotonic()
        first = last if first is None else first
        completion = output.outputs[0]
        num_tokens += len(completion.token_ids)
        num_prompt_tokens, reason = len(output.prompt_token_ids), completion.finish_reason
        if completion.text:
            sys.stdout.write(completion.text)
            sys.stdout.flush()
            ends_line = completion.text.endswith("\n")
    if not ends_line:
        sys.stdout.write("\n")
        sys.stdout.flush()
    if first is None:
        return "no tokens"
    rate = f", {(num_tokens - 1) / (last - first):.1f} tokens/s" if num_tokens > 1 and last > first else ""
    end = " (length limit)" if reason == "length" else ""
    return f"{num_prompt_tokens} tokens in, {num_tokens} out{end}; first after {first - started:.2f} s{rate}"


def note(text: str, quiet: bool = False) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)
