"""What went wrong, as HTTP says it: a status and {"error": {message, type, param, code}}, or Anthropic's shape."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from octavo.errors import EngineDead, InvalidParameter, InvalidRequest, OctavoError

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1  # after which to ask again, where nobody can say

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    413: "RequestTooLargeError",
    500: "InternalServerError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_ANTHROPIC_PATHS = ("/v1/messages",)
_FIELD_NAME = re.compile(r"(?!(str|int|float|bool|list|dict|none)$)[a-z_][a-z0-9_]*")
_MAX_MESSAGE = 2000  # characters: an error does not send a request's content back


class ApiError(HTTPException):
    """An error that only HTTP knows: a status, a message, and the field to blame."""

    def __init__(
        self, status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.param = param


def model_not_found(name: str) -> ApiError:
    return ApiError(404, f"the model {_shown(name)} does not exist: /v1/models lists those that do", "model")


def not_ready(what: str) -> ApiError:
    return ApiError(503, what)


def status_of(error: Exception) -> int:
    """The status that stands for an error."""
    if isinstance(error, HTTPException):
        return error.status_code
    if isinstance(error, InvalidRequest | RequestValidationError):
        return 400
    return 503 if isinstance(error, EngineDead) or hasattr(error, "retry_after") else 500


def error_fields(error: Exception, status: int | None = None) -> dict[str, Any]:
    """The object under "error". What is unexpected is logged and not told."""
    status = status_of(error) if status is None else status
    message, param = str(error), None
    if isinstance(error, RequestValidationError):
        message, param = _first_problem(error)
    elif isinstance(error, InvalidRequest):
        param = error.field
    elif isinstance(error, ApiError):
        message, param = str(error.detail), error.param
    elif isinstance(error, HTTPException):
        message = str(error.detail)
    elif not isinstance(error, OctavoError):
        logger.error("an error nobody expected", exc_info=error)
        message = "internal error: the server's log says more"
    kind = _TYPES.get(status, "BadRequestError" if status < 500 else "InternalServerError")
    return {"message": _well_formed(message), "type": kind, "param": _well_formed(param), "code": status}


def error_body(error: Exception) -> dict[str, Any]:
    return {"error": error_fields(error)}


def anthropic_error_body(error: Exception) -> dict[str, Any]:
    status = status_of(error)
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    fields = error_fields(error, status)
    return {"type": "error", "error": {"type": kind, "message": fields["message"]}}


def error_response(error: Exception, path: str) -> Response:
    is_anthropic = path.startswith(_ANTHROPIC_PATHS)
    body = anthropic_error_body(error) if is_anthropic else error_body(error)
    headers = dict(getattr(error, "headers", None) or {})
    status = status_of(error)
    if status == 503:
        headers = {"Retry-After": str(getattr(error, "retry_after", None) or RETRY_SECONDS), **headers}
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def add_error_handlers(app: FastAPI) -> None:
    async def handle(request: Request, error: Exception) -> Response:
        return error_response(error, request.url.path.removeprefix(request.scope.get("root_path", "")))

    for kind in (HTTPException, RequestValidationError, OctavoError, Exception):
        app.add_exception_handler(kind, handle)


@contextlib.contextmanager
def named_as(**names: str) -> Iterator[None]:
    """Errors of parameters inside speak of the request's own fields: named_as(stop="stop_sequences")."""
    try:
        yield
    except InvalidParameter as error:
        if error.field not in names:
            raise
        raise InvalidParameter(names[error.field], error.value, error.limit) from None


def _first_problem(error: RequestValidationError) -> tuple[str, str | None]:
    """(message, field) of the first thing that is wrong with a body."""
    problems = error.errors()
    if not problems:
        return "the request is malformed", None
    if problems[0]["type"] == "json_invalid":
        return f"the body is not JSON: {problems[0].get('ctx', {}).get('error', '')}", None
    # A field that has several forms has a problem with each: the deepest comes from the form that was meant.
    deepest = max(problems, key=lambda problem: len(problem["loc"]))
    field = _field_of(deepest["loc"])
    if field is None:
        return "the body must be a JSON object (with Content-Type: application/json)", None
    messages = dict.fromkeys(str(problem["msg"]) for problem in problems if _field_of(problem["loc"]) == field)
    got = "" if deepest["type"] == "missing" else f", got {_shown(deepest.get('input'))}"
    return f"{field}: {', or '.join(messages)}{got}", field


def _field_of(location: Sequence[str | int]) -> str | None:
    """messages[0].content, of a place that also names which form of a field was tried."""
    parts = [part for part in location[1:] if isinstance(part, int) or _FIELD_NAME.fullmatch(part)]
    if not parts:
        return None
    return str(parts[0]) + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts[1:])


def _well_formed(text: str | None) -> str | None:
    """Text that UTF-8 can carry, and not too much of it."""
    if text is None:
        return None
    if len(text) > _MAX_MESSAGE:
        text = text[:_MAX_MESSAGE] + "…"
    return text.encode("utf-8", "replace").decode("utf-8")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "…"
