"""Runs a workload through an engine: throughput with the path that `LLM.generate` takes, latency token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from octavo.cli.bench.figures import distribution, repetitions, rounded
from octavo.cli.bench.workloads import Workload
from octavo.core.messages import StepStats
from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.engine.frontend import Frontend
from octavo.errors import RequestFailed
from octavo.llm import LLM

_WARM_UP_REQUESTS = 64
Progress = Callable[[str], None]


@dataclass
class Steps:
    """What the steps of a run cost the host, in seconds."""

    schedule: list[float] = field(default_factory=list)
    update: list[float] = field(default_factory=list)
    front: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    num_preempted: int = 0

    def add(self, stats: StepStats, front_seconds: float) -> None:
        self.schedule.append(stats.schedule_seconds)
        self.update.append(stats.update_seconds)
        self.front.append(front_seconds)
        self.whole.append(stats.step_seconds + front_seconds)
        self.rows.append(stats.num_running)
        self.num_preempted += stats.num_preempted

    def report(self) -> dict[str, Any]:
        """`host_ms_per_step` is the engine's own work: planning, taking in results, making outputs."""
        host = [sum(parts) for parts in zip(self.schedule, self.update, self.front, strict=True)]
        return {
            "steps": len(host),
            "preemptions": self.num_preempted,
            "rows_per_step": distribution([float(rows) for rows in self.rows]),
            "step_ms": distribution(self.whole, 1000),
            "host_ms_per_step": {
                "total": distribution(host, 1000),
                "schedule": distribution(self.schedule, 1000),
                "update": distribution(self.update, 1000),
                "front": distribution(self.front, 1000),
            },
        }


class Throughput:
    """All requests of a workload at once, as fast as they go."""

    name = "throughput"

    def __init__(self, frontend: Frontend, workload: Workload) -> None:
        self.llm, self.workload = LLM.from_frontend(frontend), workload
        self.vocab_size = frontend.inputs.limits.vocab_size
        self.seconds: list[float] = []
        self.num_cached_tokens: list[int] = []
        self.steps = Steps()

    def warm_up(self) -> None:
        """One short request, then many."""
        count = min(_WARM_UP_REQUESTS, len(self.workload.lengths))
        for num_requests, prompt, output in ((1, 16, 4), (count, 64, 16)):
            prompts = [[10 + (i + j) % 100 for j in range(prompt)] for i in range(num_requests)]
            self.llm.generate(prompts, _params(output, 0.6), use_tqdm=False)

    def repeat(self, repetition: int) -> float:
        """Seconds of one repetition, with prompts of its own. Raises RequestFailed."""
        prompts = self.workload.draw(repetition, self.vocab_size)
        params = [_params(output, self.workload.temperature) for _, output in self.workload.lengths]
        self.llm.on_step = self.steps.add
        started = time.perf_counter()
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        self.seconds.append(time.perf_counter() - started)
        self.llm.on_step = None
        for output, (_, expected) in zip(outputs, self.workload.lengths, strict=True):
            if len(output.outputs[0].token_ids) != expected:
                why = output.error or f"{len(output.outputs[0].token_ids)} tokens instead of {expected}"
                raise RequestFailed(output.request_id, why)
        self.num_cached_tokens.append(sum(output.num_cached_tokens for output in outputs))
        return self.seconds[-1]

    def report(self) -> dict[str, Any]:
        best = min(self.seconds)
        return {
            **repetitions(self.seconds),
            "requests_per_second": rounded(len(self.workload.lengths) / best),
            "output_tokens_per_second": rounded(self.workload.num_output_tokens / best),
            "prompt_tokens_per_second": rounded(self.workload.num_prompt_tokens / best),
            "prompt_tokens_from_cache": self.num_cached_tokens,
            **self.steps.report(),
        }


class Latency:
    """The same, watched token by token, as a streaming reader sees it."""

    name = "latency"

    def __init__(self, frontend: Frontend, workload: Workload) -> None:
        self.frontend, self.workload = frontend, workload
        self.seconds: list[float] = []
        self.first: list[float] = []
        self.between: list[float] = []
        self.whole: list[float] = []
        self.steps = Steps()

    def warm_up(self) -> None:
        Throughput(self.frontend, self.workload).warm_up()

    def repeat(self, repetition: int) -> float:
        """Raises RequestFailed."""
        client, outputs = self.frontend.client, self.frontend.outputs
        prompts = self.workload.draw(repetition, self.frontend.inputs.limits.vocab_size)
        started = time.perf_counter()
        requests = []
        for position, (prompt, (_, length)) in enumerate(zip(prompts, self.workload.lengths, strict=True)):
            params = _params(length, self.workload.temperature, RequestOutputKind.DELTA)
            prepared = self.frontend.inputs.prepare(prompt, params, f"latency-{repetition}-{position}")
            requests.append(outputs.add(prepared))
            for submit in prepared.submits:
                client.add(submit)
        last_seen: dict[str, float] = {}
        while len(last_seen) < len(requests) or not all(request.finished for request in requests):
            step = client.step()
            before = time.perf_counter()
            for request in outputs.process(step).changed:
                output = request.take()
                assert output is not None
                if output.error is not None:
                    raise RequestFailed(request.request_id, output.error)
                now = time.perf_counter()
                for _ in output.outputs[0].token_ids:
                    if request.request_id in last_seen:
                        self.between.append(now - last_seen[request.request_id])
                    else:
                        self.first.append(now - started)
                    last_seen[request.request_id] = now
                if output.finished:
                    self.whole.append(now - started)
            if step.stats is not None:
                self.steps.add(step.stats, time.perf_counter() - before)
        self.seconds.append(time.perf_counter() - started)
        return self.seconds[-1]

    def report(self) -> dict[str, Any]:
        return {
            **repetitions(self.seconds),
            "time_to_first_token_ms": distribution(self.first, 1000),
            "inter_token_latency_ms": distribution(self.between, 1000),
            "request_latency_ms": distribution(self.whole, 1000),
            **self.steps.report(),
        }


def graph_totals(frontend: Frontend) -> dict[str, Any]:
    """What captured graphs cost, of a core in this process."""
    client: Any = frontend.client
    totals = client.core.executor.worker.runner.graph_totals()
    return {
        "number": totals.number,
        "seconds": rounded(totals.seconds),
        "gib": rounded(totals.num_bytes / (1 << 30)),
    }


class Run(Protocol):
    """Something that can be repeated, `transformers_peer.TransformersPeer` too."""

    name: str

    def warm_up(self) -> None: ...

    def repeat(self, repetition: int) -> float: ...


def run_all(runs: Sequence[Run], count: int, tell: Progress) -> None:
    """`count` repetitions of each, in turn, so that a slower spell of the machine meets them all."""
    for run in runs:
        run.warm_up()
    for repetition in range(count):
        for run in runs:
            seconds = run.repeat(repetition)
            tell(f"{run.name}: repetition {repetition + 1} of {count}: {seconds:.3f} s")


def _params(output: int, temperature: float, kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY) -> SamplingParams:
    return SamplingParams(
        temperature=temperature, max_tokens=output, ignore_eos=True, detokenize=False, output_kind=kind
    )
