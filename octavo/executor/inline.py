"""One device, in this process."""

from __future__ import annotations

from octavo.core.step import StepPlan, StepResult, TokenMasks
from octavo.runner.model_runner import ModelRunner, RunningStep
from octavo.worker.worker import Worker


class InlineStep:
    def __init__(self, runner: ModelRunner, plan: StepPlan) -> None:
        self.plan = plan
        self._runner = runner
        self._step: RunningStep = runner.forward(plan)

    def finish(self, masks: TokenMasks | None = None) -> None:
        self._runner.finish(self._step, masks)

    def wait(self) -> StepResult:
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
