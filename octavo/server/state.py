"""What the endpoints of one server share: the engine, which may still be loading, and how it is served."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from octavo.config.serve_options import ServeOptions
from octavo.core.params import SamplingParams
from octavo.engine.async_engine import AsyncEngine
from octavo.server.errors import ApiError, model_not_found, not_ready
from octavo.server.output_parser import Forced, OutputParser, detect_parsers, make_output_parser
from octavo.telemetry.recorder import Recorder

logger = logging.getLogger(__name__)

_OFF = "none"  # --tool-call-parser none


@dataclass
class ServedModel:
    """A loaded engine, the names that requests may call it by, and how its output is read."""

    engine: AsyncEngine
    options: ServeOptions
    names: list[str]
    tool_parser: str | None
    reasoning_parser: str | None
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, engine: AsyncEngine, options: ServeOptions) -> ServedModel:
        """Raises ConfigurationError for a parser that does not exist."""
        names = options.served_model_name or _names_of(engine)
        template = engine.inputs.chat_template
        tokenizer = engine.frontend.tokenizer
        tool, reasoning = (None, None) if tokenizer is None else detect_parsers(template, tokenizer, names[0])
        tool, reasoning = _chosen(options.tool_call_parser, tool), _chosen(options.reasoning_parser, reasoning)
        if tokenizer is not None:
            make_output_parser(tool, reasoning, tokenizer, None, False)  # they exist
        return cls(engine, options, list(dict.fromkeys(names)), tool, reasoning)

    @property
    def max_model_len(self) -> int:
        return self.engine.inputs.limits.max_model_len

    @property
    def sampling_defaults(self) -> dict[str, Any]:
        return dict(self.engine.frontend.sampling_defaults)

    def name_for(self, asked: str | None) -> str:
        """The name that an answer carries. Raises a 404 for a model that is not served."""
        if not asked:
            return self.names[0]
        if asked not in self.names:
            raise model_not_found(asked)
        return asked

    def new_parser(
        self, tools: list[dict[str, Any]] | None, ends_in_reasoning: bool, forced: Forced | None = None
    ) -> OutputParser | None:
        """A parser for one completion; None where there is nothing to find in it. Without `tools`, calls are text."""
        tool = self.tool_parser if tools else None
        if tool is None and self.reasoning_parser is None and forced is None:
            return None
        tokenizer = self.engine.get_tokenizer()
        if forced is not None:
            return make_output_parser(tool, self.reasoning_parser, tokenizer, tools, ends_in_reasoning, forced)
        return make_output_parser(tool, self.reasoning_parser, tokenizer, tools, ends_in_reasoning)

    def log_request(self, request_id: str, prompt: str | None, token_ids: list[int], params: SamplingParams) -> None:
        if self.options.enable_log_requests:
            most = self.options.max_log_len
            logger.info("request %s: prompt %r, token ids %s, %s", request_id,
                        None if prompt is None else prompt[:most], token_ids[:most], params)  # fmt: skip


class ServerState:
    """From before the engine is there until after it has gone. Belongs to one event loop."""

    def __init__(self, options: ServeOptions) -> None:
        self.options = options
        self.num_active = 0  # requests that are being answered
        self.is_stopping = False
        self.recorder: Recorder | None = None  # of the engine's steps and requests
        self._served: asyncio.Future[ServedModel] | None = None

    @property
    def served(self) -> asyncio.Future[ServedModel]:
        if self._served is None:
            self._served = asyncio.get_running_loop().create_future()
        return self._served

    @property
    def status(self) -> str:
        """starting, ready, restarting, failed, dead or stopping."""
        if self.is_stopping:
            return "stopping"
        if not self.served.done():
            return "starting"
        if self.served.cancelled() or self.served.exception() is not None:
            return "failed"
        return self.served.result().engine.state

    def require_model(self) -> ServedModel:
        """Raises a 503 while there is no engine that answers."""
        status = self.status
        if status == "starting":
            raise not_ready("the engine is starting: ask again in a moment")
        # while the core restarts, requests wait for it
        if status not in ("ready", "restarting", "draining", "stopping") or not self.served.done():
            raise not_ready(f"the engine is {status}")
        return self.served.result()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Counts a request while it runs."""
        self.num_active += 1
        try:
            yield
        finally:
            self.num_active -= 1


def state_of(request: Request) -> ServerState:
    state: ServerState = request.app.state.octavo
    return state


def served_model(request: Request) -> ServedModel:
    return state_of(request).require_model()


def public_id(request: Request, prefix: str, asked: str | None = None) -> str:
    """The id of an answer: the body's request_id, else the request's name."""
    if asked is not None and not 0 < len(asked) <= 256:
        raise ApiError(400, f"request_id must have from 1 to 256 characters, got {len(asked)}", "request_id")
    return f"{prefix}{asked or request.state.request_id}"


def engine_id(answer_id: str) -> str:
    """Ids that clients choose may be the same for two running requests, the engine's may not."""
    return f"{answer_id}-{secrets.token_hex(4)}"


def _chosen(asked: str | None, detected: str | None) -> str | None:
    return detected if not asked else None if asked == _OFF else asked


def check_parsers(options: ServeOptions) -> None:
    """Raises ConfigurationError for a parser that does not exist."""
    tool, reasoning = _chosen(options.tool_call_parser, None), _chosen(options.reasoning_parser, None)
    make_output_parser(tool, reasoning, None, None, False)


def _names_of(engine: AsyncEngine) -> list[str]:
    """As the user named the model, and as it calls itself."""
    configured = engine.frontend.configured
    if configured is None:
        return ["model"]
    return list(dict.fromkeys([configured.checkpoint.source, configured.checkpoint.name]))
