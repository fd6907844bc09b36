"""Steps of a processor as recorded calls: the host's part of a small step is larger than its kernels' otherwise."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.runner.batch import Batch
from octavo.runner.graphs import Compute, Computed, GraphTotals

if TYPE_CHECKING:
    from octavo.ops.cpu.tape import Tape

logger = logging.getLogger(__name__)

MOST_TAPES = 256  # kept; the one that was not used for longest goes


@dataclass(slots=True)
class _Recorded:
    tape: Tape
    batch: Batch  # whose tensors the kernels read
    computed: Computed


class TapedGraphs:
    """A step is recorded when one of its size is met for the second time, and played from the third on. Where an
    operator of torch takes part, steps of that size run as they are."""

    def __init__(self) -> None:
        from octavo.ops.cpu.memory import Arena  # absent where nothing was compiled

        self._arena = Arena()
        self._met: set[Hashable] = set()
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._foreign: dict[Hashable, str] = {}  # the operator, of those that cannot be recorded
        self._seconds = 0.0

    def run(self, batch: Batch, key: Hashable | None, compute: Compute) -> Computed:
        if key is None or key in self._foreign:
            return compute(batch)
        recorded = self._recorded.get(key)
        if recorded is not None:
            self._recorded.move_to_end(key)
            recorded.tape.run()
            return recorded.computed
        if key not in self._met:
            self._met.add(key)
            return compute(batch)
        return self._record(batch, key, compute)

    def _record(self, batch: Batch, key: Hashable, compute: Compute) -> Computed:
        from octavo.ops.cpu.tape import Tape

        started = time.perf_counter()
        tape = Tape(self._arena)
        computed = tape.record(lambda: compute(batch))
        self._seconds += time.perf_counter() - started
        if tape.foreign is not None:
            if tape.foreign not in self._foreign.values():
                logger.info("some steps are not recorded: %s of torch takes part in them", tape.foreign)
            self._foreign[key] = tape.foreign
            return computed
        self._recorded[key] = _Recorded(tape, batch, computed)
        if len(self._recorded) > MOST_TAPES:
            self._recorded.popitem(last=False)
        return computed

    def totals(self) -> GraphTotals:
        return GraphTotals(len(self._recorded), self._seconds, self._arena.num_bytes)

    def release(self) -> None:
        self._recorded.clear()
        self._met.clear()
        self._foreign.clear()
