"""GET /v1/models."""

from __future__ import annotations

from fastapi import Request

from octavo.server.errors import model_not_found
from octavo.server.protocol.models import ModelCard, ModelList
from octavo.server.routing import REFUSALS, make_router
from octavo.server.state import ServedModel, served_model

router = make_router("models")


@router.get("/v1/models", responses=REFUSALS)
async def list_models(request: Request) -> ModelList:
    """The names by which the model can be called."""
    served = served_model(request)
    return ModelList(data=[_card(served, name) for name in served.names])


@router.get("/v1/models/{name:path}", responses=REFUSALS)
async def retrieve_model(name: str, request: Request) -> ModelCard:
    served = served_model(request)
    if name not in served.names:
        raise model_not_found(name)
    return _card(served, name)


def _card(served: ServedModel, name: str) -> ModelCard:
    return ModelCard(id=name, created=served.created, root=served.names[0], max_model_len=served.max_model_len)
