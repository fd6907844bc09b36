"""octavo: an inference and serving engine for language models.

The public names load on first use, so that `import octavo` costs nothing and imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncEngine",
    "BatchUpdate",
    "BeamSearchParams",
    "LogitsProcessor",
    "MoveDirectionality",
    "ProcessorCall",
    "RepetitionDetection",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "Thinking",
    "__version__",
]

_HOMES = {
    "LLM": "octavo.llm",
    "AsyncEngine": "octavo.engine.async_engine",
    "BatchUpdate": "octavo.sampling.processors",
    "LogitsProcessor": "octavo.sampling.processors",
    "MoveDirectionality": "octavo.sampling.processors",
    "ProcessorCall": "octavo.core.params",
    "RequestOutput": "octavo.core.outputs",
    "BeamSearchParams": "octavo.core.params",
    "RepetitionDetection": "octavo.core.params",
    "SamplingParams": "octavo.core.params",
    "StructuredOutputsParams": "octavo.core.structured",
    "Thinking": "octavo.core.structured",
}

if TYPE_CHECKING:
    from octavo.core.outputs import RequestOutput
    from octavo.core.params import BeamSearchParams, ProcessorCall, RepetitionDetection, SamplingParams
    from octavo.core.structured import StructuredOutputsParams, Thinking
    from octavo.engine.async_engine import AsyncEngine
    from octavo.llm import LLM
    from octavo.sampling.processors import BatchUpdate, LogitsProcessor, MoveDirectionality


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
