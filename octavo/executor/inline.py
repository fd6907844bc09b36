"""One device, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from octavo.core.step import StepPlan, StepResult, TokenMasks
from octavo.errors import OutOfMemory
from octavo.ops.device import is_out_of_memory
from octavo.runner.model_runner import ModelRunner, RunningStep
from octavo.worker.worker import Worker


@contextmanager
def _memory_errors() -> Iterator[None]:
    """What a device raises for want of memory, as octavo's own error."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"the device has too little memory for this step: {error}") from error


class InlineStep:
    """Raises OutOfMemory where the device does."""

    def __init__(self, runner: ModelRunner, plan: StepPlan) -> None:
        self.plan = plan
        self._runner = runner
        with _memory_errors():
            self._step: RunningStep = runner.forward(plan)

    def finish(self, masks: TokenMasks | None = None) -> None:
        with _memory_errors():
            self._runner.finish(self._step, masks)

    def wait(self) -> StepResult:
        with _memory_errors():
            return self._runner.collect(self._step)


class InlineExecutor:
    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def submit(self, plan: StepPlan) -> InlineStep:
        return InlineStep(self.worker.runner, plan)

    def reset(self) -> None:
        self.worker.recover()

    def shutdown(self) -> None:
        self.worker.release()
