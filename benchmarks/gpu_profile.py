"""Some steps under torch's profiler: what device and host did, where the device waited; a summary and a picture.

    python benchmarks/gpu_profile.py --shape llama-8b profile/
    python benchmarks/gpu_profile.py --shape llama-8b --rows 1 --cases decode profile/

Cases: `decode`, all rows one token a step; `mixed`, the same while long prompts are computed. Of each it writes
CASE.json, CASE.md (the same for people) and CASE.svg (three steps on end). Under the profiler steps take longer than
without: compare kernels with kernels. Made docs/guides/gpu-profile.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PHASES = ("schedule", "submit", "sample", "wait", "update")  # of the host, within a step
_SHORTER = 48  # characters of a kernel's name


@dataclass(frozen=True)
class Span:
    """Of the profile, in microseconds."""

    name: str
    begin: float
    end: float


@dataclass
class Profile:
    steps: list[Span]  # of the host
    host: list[Span]  # phases of steps
    kernels: list[Span]
    copies: list[Span]  # and fills


@dataclass
class Summary:
    device: str
    num_steps: int
    step_us: float  # of the host
    busy_share: float  # of the time between the first kernel and the last, in which one ran
    idle_us_per_step: float
    kernels_per_step: float
    kernels: list[dict[str, Any]] = field(default_factory=list)  # by time
    gaps: list[dict[str, Any]] = field(default_factory=list)  # by time: between which kernels the device waited
    host_us_per_step: dict[str, float] = field(default_factory=dict)
    copies_per_step: float = 0.0
    copy_us_per_step: float = 0.0


def read_trace(events: Sequence[dict[str, Any]]) -> Profile:
    """Of what torch's profiler exports for Chrome."""
    found = Profile([], [], [], [])
    for event in events:
        if event.get("ph") != "X":
            continue
        category, name = event.get("cat", ""), event["name"]
        span = Span(name, float(event["ts"]), float(event["ts"]) + float(event.get("dur", 0)))
        if category == "kernel":
            found.kernels.append(span)
        elif category in ("gpu_memcpy", "gpu_memset"):
            found.copies.append(span)
        elif category == "user_annotation" and name == "step":
            found.steps.append(span)
        elif category == "user_annotation" and name in PHASES:
            found.host.append(span)
    for spans in (found.steps, found.host, found.kernels, found.copies):
        spans.sort(key=lambda span: span.begin)
    return found


def summarise(profile: Profile, device: str) -> Summary:
    steps, num_steps = profile.steps, len(profile.steps)
    by_name: dict[str, list[float]] = defaultdict(list)
    for span in profile.kernels:
        by_name[short(span.name)].append(span.end - span.begin)
    in_all = sum(map(sum, by_name.values())) or 1.0
    busy, gaps = 0.0, defaultdict(list)
    last: Span | None = None
    for span in profile.kernels:
        if last is None or span.begin >= last.end:
            if last is not None and span.begin > last.end:
                gaps[short(last.name), short(span.name)].append(span.begin - last.end)
            busy += span.end - span.begin
            last = span
        elif span.end > last.end:  # they overlap: the second began early
            busy += span.end - last.end
            last = span
    idle = sum(map(sum, gaps.values()))
    host = {
        phase: sum(span.end - span.begin for span in profile.host if span.name == phase) / max(1, num_steps)
        for phase in PHASES
    }
    distance = (steps[-1].end - steps[0].begin) / num_steps if steps else 0.0
    host["rest"] = sum(span.end - span.begin for span in steps) / max(1, num_steps) - sum(host.values())
    host["outside"] = distance - sum(host.values())
    per_step = max(1, num_steps)
    return Summary(
        device,
        num_steps,
        round(distance, 1),
        round(busy / (busy + idle), 4) if busy else 0.0,
        round(idle / per_step, 1),
        round(len(profile.kernels) / per_step, 1),
        [
            {
                "kernel": name,
                "per_step": round(len(times) / per_step, 1),
                "us_each": round(sum(times) / len(times), 2),
                "us_per_step": round(sum(times) / per_step, 1),
                "share": round(sum(times) / in_all, 4),
            }
            for name, times in sorted(by_name.items(), key=lambda item: -sum(item[1]))
        ],
        [
            {
                "after": after,
                "before": before,
                "per_step": round(len(times) / per_step, 1),
                "us_each": round(sum(times) / len(times), 2),
                "longest_us": round(max(times), 1),
                "us_per_step": round(sum(times) / per_step, 1),
            }
            for (after, before), times in sorted(gaps.items(), key=lambda item: -sum(item[1]))[:20]
        ],
        {phase: round(time, 1) for phase, time in host.items()},
        round(len(profile.copies) / per_step, 1),
        round(sum(span.end - span.begin for span in profile.copies) / per_step, 1),
    )


def short(name: str) -> str:
    """A kernel's name without what C++ adds to it."""
    name = re.sub(r"^(void|std::enable_if<.*?>::type) ", "", name)
    name = re.sub(r"\(.*", "", name)
    name = re.sub(r"<.*", "", name) if len(name) > _SHORTER else name
    name = name.split("::")[-1] if len(name) > _SHORTER else name
    return name if len(name) <= _SHORTER else name[: _SHORTER - 1] + "…"


def as_text(summary: Summary, title: str) -> str:
    lines = [
        f"**{title}** ({summary.device}, {summary.num_steps} steps under the profiler): {summary.step_us:,.0f} µs a "
        f"step, {summary.kernels_per_step:,.0f} kernels; the device is busy for {summary.busy_share:.1%} and waits "
        f"{summary.idle_us_per_step:,.0f} µs a step. Copies: {summary.copies_per_step:.0f} a step, "
        f"{summary.copy_us_per_step:.0f} µs, beside the kernels.",
        "",
        "| kernel | a step | µs each | µs a step | share |",
        "|---|---|---|---|---|",
    ]
    for row in summary.kernels[:16]:
        lines.append(
            f"| `{row['kernel']}` | {row['per_step']:g} | {row['us_each']:g} | {row['us_per_step']:g} | "
            f"{row['share']:.1%} |"
        )
    lines += [
        "",
        "| the device waits after | before | a step | µs each | longest | µs a step |",
        "|---|---|---|---|---|---|",
    ]
    for row in summary.gaps[:8]:
        lines.append(
            f"| `{row['after']}` | `{row['before']}` | {row['per_step']:g} | {row['us_each']:g} | "
            f"{row['longest_us']:g} | {row['us_per_step']:g} |"
        )
    host = ", ".join(f"{phase} {time:g}" for phase, time in summary.host_us_per_step.items())
    return "\n".join([*lines, "", f"Host, µs a step: {host}.", ""])


def draw(profile: Profile, title: str, path: Path, num_steps: int = 3) -> None:
    """Three steps from the middle on: host, kernels, copies, each on its lane."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    middle = max(0, (len(profile.steps) - num_steps) // 2)
    steps = profile.steps[middle : middle + num_steps]
    begin, end = steps[0].begin, steps[-1].end
    figure, axes = pyplot.subplots(figsize=(11, 2.6))
    lanes = [("host", 2, profile.host), ("kernels", 1, profile.kernels), ("copies", 0, profile.copies)]
    kinds = ["attention", "matrix products", "norms, rotation, activation", "sampling", "other"]
    colours = dict(zip([*PHASES, *kinds], pyplot.get_cmap("tab10").colors, strict=True))
    for lane, place, spans in lanes:
        shown = [span for span in spans if span.end > begin and span.begin < end]
        for kind in dict.fromkeys(span.name if lane == "host" else kind_of(span.name) for span in shown):
            bars = [
                (span.begin - begin, max(span.end - span.begin, (end - begin) / 4000))
                for span in shown
                if (span.name if lane == "host" else kind_of(span.name)) == kind
            ]
            axes.broken_barh(bars, (place - 0.4, 0.8), color=colours[kind], linewidth=0, label=kind)
    for step in steps:
        axes.axvline(step.begin - begin, color="black", linewidth=0.5)
    axes.set(
        yticks=[0, 1, 2], yticklabels=["copies", "kernels", "host"], xlim=(0, end - begin), xlabel="µs", title=title
    )
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.28), frameon=False)
    figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


def kind_of(kernel: str) -> str:
    name = kernel.lower()
    kinds = (
        ("attention", ("flash", "_decode_kernel", "_prefill_kernel", "_list_", "_gather_kernel", "prefix", "_combine")),
        ("matrix products", ("gemm", "nvjet", "_by_dots", "_by_sums", "_add_parts", "cutlass", "splitk", "gemv")),
        ("norms, rotation, activation", ("norm", "rope", "_gated", "_write_kv")),
        ("sampling", ("_summarise", "_argmax", "_choose", "_sample", "_mask", "border", "logprob", "penalt")),
    )
    return next((kind for kind, parts in kinds if any(part in name for part in parts)), "other")


# ---- the engine ------------------------------------------------------------------------------------------------------


def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, as a range of the profile."""
    from torch.profiler import record_function

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return function(*args, **kwargs)

    return call


def mark_phases(core: Any) -> None:
    from octavo.executor.inline import InlineStep

    core.scheduler.schedule = named("schedule", core.scheduler.schedule)
    core.scheduler.update = named("update", core.scheduler.update)
    core.executor.submit = named("submit", core.executor.submit)
    steps: Any = InlineStep
    steps.finish = named("sample", steps.finish)
    steps.wait = named("wait", steps.wait)


def run_case(client: Any, case: str, args: argparse.Namespace) -> Profile:
    """Requests come, everything is captured that will be, then `args.steps` steps are recorded."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    from octavo.core.messages import Submit
    from octavo.core.params import SamplingParams

    endless = SamplingParams(temperature=0.6, max_tokens=4096, ignore_eos=True, detokenize=False)
    for row in range(args.rows):
        client.add(Submit(f"{case} {row}", [10 + (row + i) % 1000 for i in range(args.context)], endless, 0.0))
    while client.core.scheduler.waiting or any(request.num_output_tokens < 8 for request in running(client)):
        client.step()
    if case == "mixed":
        brief = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False)
        for number in range(args.steps + 16):
            ids = [10 + (7 * number + i) % 1000 for i in range(args.prompt)]
            client.add(Submit(f"prompt {number}", ids, brief, 0.0))
    for _ in range(8):
        client.step()
    has_device = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if has_device else [])]
    with profile(activities=activities) as recorded:
        for _ in range(args.steps):
            with record_function("step"):
                client.step()
        if has_device:
            torch.cuda.synchronize()
    client.abort(list(client.core.scheduler.requests))
    while client.has_work():
        client.step()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        recorded.export_chrome_trace(file.name)
        return read_trace(json.loads(Path(file.name).read_text())["traceEvents"])


def running(client: Any) -> list[Any]:
    return list(client.core.scheduler.requests.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default="llama-8b")
    parser.add_argument("--cases", default="decode,mixed")
    parser.add_argument("--rows", type=int, default=64, help="That decode.")
    parser.add_argument("--context", type=int, default=512, help="Tokens of their prompts.")
    parser.add_argument("--prompt", type=int, default=2048, help="Tokens of a prompt in `mixed`.")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--options", default="{}", help="JSON: more engine options.")
    args = parser.parse_args()

    import torch

    from octavo.cli.bench.workloads import SHAPES
    from octavo.engine.frontend import open_frontend

    options = {"load_format": "dummy", "max_model_len": 17_408, "max_num_batched_tokens": 2048 + args.rows}
    client: Any = open_frontend(SHAPES[args.shape], {**options, **json.loads(args.options)}).client
    mark_phases(client.core)
    args.folder.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    for case in args.cases.split(","):
        found = run_case(client, case, args)
        summary, title = summarise(found, device), f"{args.shape}, {case}, {args.rows} rows of {args.context}"
        (args.folder / f"{case}.json").write_text(json.dumps(asdict(summary), indent=1) + "\n")
        (args.folder / f"{case}.md").write_text(as_text(summary, title))
        draw(found, title, args.folder / f"{case}.svg")
        print(as_text(summary, title), flush=True)
    client.shutdown()
    sys.stdout.flush()
    os._exit(0)  # the profiler's library still has buffers, which it may free twice in an orderly end


if __name__ == "__main__":
    main()
