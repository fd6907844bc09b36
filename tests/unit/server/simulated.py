"""An engine over the simulated device, with steps of a chosen length, behind the page's routers."""

from __future__ import annotations

import time
from collections.abc import Iterable

from octavo.core.messages import StepOutputs, Submit
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.client import InlineClient
from octavo.engine.engine_core import EngineCore
from octavo.engine.frontend import Frontend
from octavo.engine.inputs import InputProcessor, PromptLimits
from octavo.engine.outputs import OutputProcessor
from octavo.telemetry.live import LiveView
from octavo.telemetry.metrics import Metrics
from octavo.telemetry.recorder import Recorder
from octavo.telemetry.throughput import ThroughputLog
from tests.simulation import END, VOCABULARY, make_engine


class PacedClient(InlineClient):
    """Each step takes so many seconds."""

    def __init__(self, core: EngineCore, seconds: float = 0.0) -> None:
        super().__init__(core)
        self.seconds = seconds
        self.watched: list[float] = []

    def step(self) -> StepOutputs:
        if self.seconds:
            time.sleep(self.seconds)
        return super().step()

    def watch(self, seconds: float) -> None:
        self.watched.append(seconds)
        super().watch(seconds)

    def add(self, submit: Submit) -> None:
        super().add(submit)

    def abort(self, request_ids: Iterable[str]) -> None:
        super().abort(request_ids)


def simulated_engine(seconds: float = 0.0, *, budget: int = 256, rows: int = 16, slabs: int = 200) -> AsyncEngine:
    """With a recorder that has everything but traces."""
    core = make_engine(budget=budget, max_rows=rows, num_slabs=slabs)
    limits = PromptLimits(VOCABULARY, core.max_total_tokens, 20)
    frontend = Frontend(
        client=PacedClient(core, seconds),
        inputs=InputProcessor(limits, None, [END], None),
        outputs=OutputProcessor(None),
    )
    engine = AsyncEngine.from_frontend(frontend)
    metrics = Metrics("simulated", max_model_len=core.max_total_tokens)
    engine.record_with(Recorder(metrics, ThroughputLog(), LiveView("simulated", budget, rows)))
    return engine
