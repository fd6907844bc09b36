"""Processes as they are, but for a core that computes nothing: it starts in half a second and needs no torch. For tests
of what goes on between processes; those of answers have the real one.

`python -m tests.server.light serve …` is `octavo serve …` with such a core, `start_child` starts one from a test.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

from octavo.core.step import StepPlan, StepResult
from octavo.engine import control, launch
from octavo.engine.control import Child

_CORE = "octavo.engine.core_process"
LOAD_SECONDS = "LIGHT_LOAD_SECONDS"  # in the environment: what loading takes at least
_FIRST_ID = 10  # of the tokens that it says: those below are special, or fail


def start_child(module: str, arguments: Sequence[str] = (), pass_fds: Sequence[int] = ()) -> Child:
    """In the place of `launch.start_child`."""
    return control.start_child("tests.server.light" if module == _CORE else module, arguments, pass_fds)


class LightDevice:
    """What a row says is a function of its tokens. `model` takes octavo's test faults."""

    def __init__(self, vocab_size: int) -> None:
        self.rows: dict[str, list[int]] = {}
        self.num_computed: dict[str, int] = {}
        self.faults: Mapping[str, float] = {}
        self._vocab_size = vocab_size

    def submit(self, plan: StepPlan) -> LightStep:
        for request_id in plan.removed:
            self.rows.pop(request_id, None)
        for new in plan.new_rows:
            self.rows[new.request_id] = list(new.token_ids)
            self.num_computed[new.request_id] = new.num_computed_tokens
        for request_id, skipped in plan.skipped_tokens.items():
            self.num_computed[request_id] += skipped
        time.sleep(self.faults.get("delay", 0.0))
        failed = {}
        for request_id, count in plan.num_scheduled_tokens.items():
            start = self.num_computed[request_id]
            self.num_computed[request_id] = start + count
            if count > 1 and self._strikes(self.rows[request_id][start : start + count]):
                failed[request_id] = "not finite"
        sampled = []
        for request_id in plan.sampled:
            row = self.rows[request_id]
            sampled.append(_FIRST_ID + (31 * sum(row[-3:]) + len(row)) % 79 % (self._vocab_size - _FIRST_ID))
            row.append(sampled[-1])
        return LightStep(plan, StepResult(plan.step_id, sampled, failed=failed))

    def _strikes(self, token_ids: list[int]) -> bool:
        """Whether what they give is not finite."""
        at = {kind for kind, token_id in self.faults.items() if kind != "delay" and token_id in token_ids}
        if "exit" in at:
            os._exit(70)
        while "hang" in at:
            time.sleep(60)
        if "raise" in at:
            raise RuntimeError("a test's fault")
        return "nan" in at

    def reset(self) -> None:
        self.rows.clear()

    def shutdown(self) -> None:
        self.rows.clear()


class LightStep:
    def __init__(self, plan: StepPlan, result: StepResult) -> None:
        self.plan, self._result = plan, result

    def finish(self) -> None:
        """Everything is done."""

    def wait(self) -> StepResult:
        return self._result


def build_engine(config: Any, platform: Any, phases: Any = None) -> Any:
    """In the place of `assemble.build_engine`."""
    from tests.simulation import make_engine

    time.sleep(float(os.environ.get(LOAD_SECONDS, 0)))
    num_slabs = config.cache.num_blocks_override or 1024
    core = make_engine(
        budget=config.scheduler.max_num_batched_tokens,
        max_rows=config.scheduler.max_num_seqs,
        num_slabs=num_slabs,
        depth=config.scheduler.depth,
        max_model_len=config.scheduler.max_model_len,
    )
    device: Any = LightDevice(config.model.vocab_size)
    device.worker = SimpleNamespace(
        runner=SimpleNamespace(model=device),
        memory=SimpleNamespace(num_slabs=num_slabs + 1),
        slabs=SimpleNamespace(blocks_per_slab=core.scheduler.cache.pool.blocks_per_slab),
        cache=SimpleNamespace(num_bytes=0),
    )
    core.executor = device
    return core


def _faulty(device: LightDevice, faults: Mapping[str, float]) -> LightDevice:
    device.faults = faults
    return device


def _main() -> int:
    if sys.argv[1:2] == ["serve"]:
        from octavo.cli.main import main as octavo

        launch.start_child = start_child
        return octavo(sys.argv[1:])
    from octavo.engine import core_process, faults

    assemble: Any = ModuleType("octavo.engine.assemble")
    assemble.build_engine = build_engine
    sys.modules[assemble.__name__] = assemble
    core_process.torch_import.map_library = lambda: None  # type: ignore[assignment]
    faults.FaultyModel = _faulty  # type: ignore[misc,assignment]
    return core_process.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(_main())
