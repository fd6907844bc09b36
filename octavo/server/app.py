"""The application: endpoints, errors, and the layers round them. It answers before there is an engine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

import octavo
from octavo.server import admin, chat, completions, messages, models, responses, tokenize
from octavo.server.access import ApiKeys, RequestIds
from octavo.server.errors import add_error_handlers
from octavo.server.middleware import load_middleware
from octavo.server.response_store import ResponseStore
from octavo.server.state import ServerState

MAX_BODY_BYTES = 64 << 20
_ROUTERS = (chat, completions, responses, messages, models, tokenize, admin)


def make_app(state: ServerState, more_routers: Iterable[APIRouter] = ()) -> FastAPI:
    """`state` gets its engine later. The application keeps it as `app.state.octavo`. Raises ConfigurationError for
    middleware that cannot be had."""
    options = state.options
    is_documented = not options.disable_fastapi_docs
    app = FastAPI(
        title="octavo",
        version=octavo.__version__,
        summary="Inference of language models, through OpenAI's and Anthropic's APIs.",
        openapi_url="/openapi.json" if is_documented else None,
        docs_url="/docs" if is_documented else None,
        redoc_url=None,
        generate_unique_id_function=_operation_id,
        max_body_size=MAX_BODY_BYTES,
        root_path=options.root_path.rstrip("/"),  # whether the proxy takes it off or not
    )
    app.state.octavo = state
    app.state.responses = ResponseStore()
    for router in (*(module.router for module in _ROUTERS), *more_routers):
        app.include_router(router)
    add_error_handlers(app)
    # What is added last is outermost.
    if options.api_key:
        app.add_middleware(ApiKeys, keys=options.api_key)
    if options.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.allowed_origins,
            allow_methods=options.allowed_methods,
            allow_headers=options.allowed_headers,
            allow_credentials=options.allow_credentials,
            expose_headers=["X-Request-Id"],
        )
    for layer in load_middleware(options.middleware):
        app.add_middleware(layer.cls, *layer.args, **layer.kwargs)
    app.add_middleware(RequestIds)
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        return _as_answered(describe())

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _operation_id(route: APIRoute) -> str:
    methods = "_".join(sorted(route.methods or ())).lower()
    return f"{methods}_{re.sub(r'[^a-z0-9]+', '_', route.path_format.lower()).strip('_')}"


def _as_answered(description: dict[str, Any]) -> dict[str, Any]:
    """Without the 422 that the framework would answer to a malformed request: here that is a 400."""
    for operations in description["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        description.get("components", {}).get("schemas", {}).pop(name, None)
    return description
