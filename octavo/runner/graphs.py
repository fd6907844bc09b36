"""A step's forward, run as it is or replayed from a captured graph.

A graph is one submission instead of hundreds, so the host is never what the device waits for. It can be replayed for
every step of its bucket, because all that differs lies in buffers at fixed addresses. A bucket is captured when it is
met for the second time: the first time it runs eagerly, which also compiles its kernels.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from octavo.ops.device import is_out_of_memory, recover
from octavo.runner.batch import Batch

logger = logging.getLogger(__name__)

Computed = tuple[torch.Tensor, torch.Tensor]  # hidden states [T, hidden], bad rows [R] bool
Compute = Callable[[Batch], Computed]


@dataclass(frozen=True)
class GraphTotals:
    """What all captured graphs together cost."""

    number: int = 0
    seconds: float = 0.0  # that capturing took
    num_bytes: int = 0  # that they hold


class Graphs(Protocol):
    def run(self, batch: Batch, key: Hashable | None, compute: Compute) -> Computed:
        """`key` None: this step has to run eagerly. The result holds until the next call."""

    def totals(self) -> GraphTotals: ...

    def release(self) -> None:
        """Gives back what captured graphs hold. May be called again, and `run` after it."""


class EagerGraphs:
    """No graphs."""

    def run(self, batch: Batch, key: Hashable | None, compute: Compute) -> Computed:
        return compute(batch)

    def totals(self) -> GraphTotals:
        return GraphTotals()

    def release(self) -> None:
        """Nothing to give back."""


@dataclass(slots=True)
class _Captured:
    graph: Any
    batch: Batch  # whose tensors the graph reads
    computed: Computed


class CudaGraphs:
    """All graphs share one memory pool: they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._met: set[Hashable] = set()
        self._captured: dict[Hashable, _Captured] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        self.num_bytes = 0  # that captured graphs hold
        self.seconds = 0.0  # that capturing took

    def run(self, batch: Batch, key: Hashable | None, compute: Compute) -> Computed:
        if key is None:
            return compute(batch)
        captured = self._captured.get(key)
        if captured is None:
            if key not in self._met:
                self._met.add(key)
                return compute(batch)
            captured = self._try_to_capture(key, batch, compute)
            if captured is None:
                return compute(batch)
        captured.graph.replay()
        return captured.computed

    def _try_to_capture(self, key: Hashable, batch: Batch, compute: Compute) -> _Captured | None:
        """None for want of memory; it is tried again when the bucket was met twice more."""
        try:
            captured = self._captured[key] = self._capture(batch, compute)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("no memory for another graph: a step of %d tokens runs as it is", batch.step.num_tokens)
            self._met.discard(key)
            recover(self._device)
            return None
        return captured

    def totals(self) -> GraphTotals:
        return GraphTotals(len(self._captured), self.seconds, self.num_bytes)

    def release(self) -> None:
        if self._captured:
            torch.cuda.synchronize(self._device)  # none of them may run any more
            self._captured.clear()
            self.num_bytes = 0

    def _capture(self, batch: Batch, compute: Compute) -> _Captured:
        started, before = time.perf_counter(), torch.cuda.memory_reserved(self._device)
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                computed = compute(batch)
            except BaseException:
                with suppress(RuntimeError):  # the capture is spoilt, which says less than what spoilt it
                    graph.capture_end()
                raise
            graph.capture_end()
        current.wait_stream(self._stream)
        seconds, num_bytes = time.perf_counter() - started, torch.cuda.memory_reserved(self._device) - before
        self.seconds += seconds
        self.num_bytes += num_bytes
        logger.info(
            "graph %d, %s tokens in %s rows: %.0f ms, %.1f MiB; in all %.1f s, %.2f GiB",
            len(self._captured) + 1,
            *(batch.bucket or ("?", "?")),
            seconds * 1e3,
            num_bytes / (1 << 20),
            self.seconds,
            self.num_bytes / (1 << 30),
        )
        return _Captured(graph, batch, computed)
