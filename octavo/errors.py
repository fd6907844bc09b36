"""Every error a user of octavo can meet.

OctavoError
├── InvalidRequest(ValueError)      this request is wrong; nothing else is harmed (HTTP 400)
│   ├── InvalidParameter            a field's value; carries field, value and limit
│   └── PromptTooLong               more tokens than the model or the cache can hold
├── CheckpointError                 a model cannot be loaded as asked
│   ├── ModelNotFound               no such file, directory or hub id
│   ├── UnsupportedModel            unknown architecture or format; lists the nearest known
│   └── WeightError                 missing, truncated or misshapen tensor
├── ConfigurationError(ValueError)  options that contradict each other or the machine
├── OutOfMemory                     the model or its cache does not fit; says by how much
├── RequestFailed                   one request failed while it ran; its neighbours go on
└── Unavailable                     nothing is wrong with the request, but it cannot be served now (HTTP 503)
    ├── Overloaded                  too much is queued already; carries retry_after
    ├── EngineStarting              what the request needs to be checked is not loaded yet
    ├── EngineRestarting            the core died while it worked on the request; another one is being started
    ├── ShuttingDown                running requests may end, new ones are not taken
    └── EngineDead                  the core is gone for good
"""

from __future__ import annotations

from typing import Any


class OctavoError(Exception):
    """Root of the tree."""


class InvalidRequest(OctavoError, ValueError):
    """A request that cannot be served as asked. `field` names what to change, if one field is to blame."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class InvalidParameter(InvalidRequest):
    """A field outside its limit: says which field, which value, and what is allowed."""

    def __init__(self, field: str, value: Any, limit: str) -> None:
        shown = repr(value)
        if len(shown) > 200:
            shown = shown[:200] + "…"
        super().__init__(f"{field} must be {limit}, got {shown}", field)
        self.value, self.limit = value, limit


class PromptTooLong(InvalidRequest):
    """The prompt has `num_tokens`, at most `limit` are possible; `reason` says whose limit that is."""

    def __init__(self, num_tokens: int, limit: int, reason: str) -> None:
        super().__init__(f"the prompt has {num_tokens} tokens, but at most {limit} fit: {reason}", "prompt")
        self.num_tokens, self.limit = num_tokens, limit


class CheckpointError(OctavoError):
    """A model that cannot be loaded as asked."""


class ModelNotFound(CheckpointError):
    """No such file, directory or hub id, or no network to fetch it (then `octavo pull MODEL` is named)."""


class UnsupportedModel(CheckpointError):
    """An architecture or file format that octavo does not know."""


class WeightError(CheckpointError):
    """A tensor that is missing, truncated, or of another shape than the model's; names tensor and shapes."""


class ConfigurationError(OctavoError, ValueError):
    """Options that contradict each other, the checkpoint or the machine."""


class OutOfMemory(OctavoError):
    """The model or its cache does not fit; the message has the numbers."""


class RequestFailed(OctavoError):
    """A request that failed while it ran (an exception or NaN in its row); other requests are unharmed."""

    def __init__(self, request_id: str, message: str) -> None:
        super().__init__(f"request {request_id} failed: {message}")
        self.request_id = request_id


class Unavailable(OctavoError):
    """Try again, here or elsewhere. `retry_after` is in seconds, None where nobody can say."""

    retry_after: int | None = None


class Overloaded(Unavailable):
    """Too much is queued already: nothing of the request was."""

    def __init__(self, message: str, retry_after: int = 1, limit: str = "") -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.limit = limit  # the option that set it


class EngineStarting(Unavailable):
    """The tokenizer or the configuration is not loaded yet."""

    retry_after = 1


class EngineRestarting(Unavailable):
    """The core died after it had begun the request. Whoever sends it again is served once the core is back."""

    retry_after = 1


class ShuttingDown(Unavailable):
    """The engine takes no new requests: it is about to end."""


class EngineDead(Unavailable):
    """The engine core is gone for good; no request can be served by it."""
