"""GET /v1/models."""

from __future__ import annotations

from typing import Any, Literal

from octavo.server.protocol.fields import Closed


class ModelCard(Closed):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "octavo"
    root: str
    parent: str | None = None
    max_model_len: int
    permission: list[Any] = []


class ModelList(Closed):
    object: Literal["list"] = "list"
    data: list[ModelCard]
