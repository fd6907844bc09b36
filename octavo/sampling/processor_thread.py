"""Requests' own logits processors, run on a thread of their own, so that one that hangs holds nobody up for long."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from queue import SimpleQueue

import torch
from torch import Tensor

from octavo.ops.device import same_stream
from octavo.sampling.engine_processors import describe
from octavo.sampling.request_processors import RowTokens


@dataclass(slots=True, eq=False)
class Job:
    """The processors of one row. `logits` is memory of its own: whoever hangs may still write there later."""

    tokens: RowTokens
    logits: Tensor  # [V]
    error: str | None = None
    seconds: float = 0.0  # minus the time when it began, until it is done
    is_done: bool = False
    is_accused: bool = False

    def run(self) -> tuple[Tensor, str | None]:
        logits, tokens = self.logits, self.tokens
        for processor in tokens.processors:
            try:
                changed = processor(tokens.prompt_token_ids, tokens.output_token_ids, logits)
            except BaseException as error:  # SystemExit too: it would end the thread
                return logits, f"its logits processor {processor.name} raised {type(error).__name__}: {error}"
            shape = self.logits.shape
            if not isinstance(changed, Tensor) or not changed.is_floating_point() or changed.shape != shape:
                why = f"returned {describe(changed)}, not logits of shape {list(shape)}"
                return logits, f"its logits processor {processor.name} {why}"
            if changed.device != self.logits.device:
                return logits, f"its logits processor {processor.name} returned logits on {changed.device}"
            logits = changed.detach().float()
        return logits, None


class _Batch:
    """Jobs in their order, done by one thread. `lock` guards everything."""

    def __init__(self, jobs: list[Job], enter: Callable[[], AbstractContextManager[object]]) -> None:
        self.jobs, self._enter = jobs, enter
        self.done = threading.Event()
        self.lock = threading.Lock()
        self.running: Job | None = None
        self.is_abandoned = False

    def run(self) -> bool:
        """False if it was abandoned meanwhile."""
        with torch.inference_mode(), self._enter():
            for job in self.jobs:
                with self.lock:
                    if self.is_abandoned:
                        return False
                    self.running, started = job, time.perf_counter()
                    job.seconds = -started
                logits, error = job.run()
                with self.lock:
                    if self.is_abandoned:
                        return False
                    job.seconds, job.is_done, self.running = time.perf_counter() - started, True, None
                    if job.error is None:
                        job.logits, job.error = logits, error
        self.done.set()
        return True

    def slowest(self, now: float) -> Job | None:
        """Of those that are not accused yet, who has taken the most time."""
        candidates = [job for job in self.jobs if (job.is_done or job is self.running) and not job.is_accused]
        return max(candidates, key=lambda job: job.seconds if job.is_done else now + job.seconds, default=None)


class _Worker:
    def __init__(self) -> None:
        self.inbox: SimpleQueue[_Batch | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="octavo-logits-processors", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with suppress(SystemExit):
            while self._run_next():
                pass

    def _run_next(self) -> bool:
        batch = self.inbox.get()
        return batch is not None and batch.run()

    def interrupt(self) -> None:
        """Ends what it is doing, if that is Python code."""
        assert self.thread.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread.ident), ctypes.py_object(SystemExit))


class ProcessorThread:
    """Runs the jobs of a step within `limit` seconds (0: no limit). Where they take longer, the job that has taken the
    most of it ends with an error, and what it took is given back to the others. Owned by the runner's thread."""

    def __init__(self, limit: float, device: torch.device) -> None:
        self._limit, self._device = limit, device
        self._worker: _Worker | None = None

    def run(self, jobs: list[Job]) -> None:
        """Each job has its result or its error afterwards."""
        batch, left = self._send(jobs), self._limit
        while not batch.done.wait(left if self._limit else None):
            with batch.lock:
                now = time.perf_counter()
                slowest = batch.slowest(now)
                if slowest is None:  # the thread got no time
                    left = self._limit
                    continue
                is_running = slowest is batch.running
                taken = now + slowest.seconds if is_running else slowest.seconds
                slowest.is_accused = True
                slowest.error = slowest.error or (
                    f"its logits processors took {taken:.2f} s{' and were not done' if is_running else ''}: those of a "
                    f"whole step may take {self._limit:g} s (logits_processor_timeout)"
                )
                left = taken
                if is_running:
                    batch.is_abandoned = True
                    rest = batch.jobs[batch.jobs.index(slowest) + 1 :]
            if is_running:
                self._abandon()
                batch = self._send(rest)

    def __del__(self) -> None:
        if self._worker is not None:
            self._worker.inbox.put(None)

    def _send(self, jobs: list[Job]) -> _Batch:
        if self._worker is None:
            self._worker = _Worker()
        batch = _Batch(jobs, same_stream(self._device))
        self._worker.inbox.put(batch)
        return batch

    def _abandon(self) -> None:
        assert self._worker is not None
        self._worker.interrupt()
        self._worker = None
