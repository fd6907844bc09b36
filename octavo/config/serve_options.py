"""Every option of `octavo serve` that the engine knows nothing of, once. Flags and docs/reference/serve.md are made
from this table; names and defaults are those vLLM's users know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from octavo.config import env
from octavo.config.options import OptionRow, check_values, option, rows_of
from octavo.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What the user said of serving. Make one with `make_serve_options`, which checks every value."""

    # ---- listen
    host: str | None = option(None, "listen", "Address to listen on. Unset: all of this machine's.")
    port: int = option(8000, "listen", "Port to listen on. 0 takes a free one.", low=0, high=65535)
    uds: str | None = option(None, "listen", "Path of a Unix socket to listen on, instead of host and port.")
    root_path: str = option("", "listen", "Path under which a proxy in front makes the server appear.")
    ssl_keyfile: str | None = option(None, "listen", "File with the private key for TLS.")
    ssl_certfile: str | None = option(None, "listen", "File with the certificate for TLS.")
    ssl_ca_certs: str | None = option(None, "listen", "File with the authorities whose client certificates count.")
    ssl_cert_reqs: int = option(
        0, "listen", "Client certificates: 0 not asked for, 1 optional, 2 required.", low=0, high=2
    )
    enable_ssl_refresh: bool = option(
        False, "listen", "Load the TLS files again when they change, for new connections."
    )

    # ---- access
    api_key: list[str] = option(
        [],
        "access",
        "Keys of which a request must bring one. Repeatable. Unset: OCTAVO_API_KEY, else everybody may ask.",
    )
    allowed_origins: list[str] = option([], "access", "Origins whose pages may ask from a browser; * for all.")
    allowed_methods: list[str] = option(["*"], "access", "HTTP methods that they may use.")
    allowed_headers: list[str] = option(["*"], "access", "Headers that they may send.")
    allow_credentials: bool = option(False, "access", "Let them send cookies and credentials.")

    # ---- models
    served_model_name: list[str] = option(
        [], "models", "Names by which requests may call the model, the first in answers. Unset: as it was given."
    )
    response_role: str = option("assistant", "models", "Role of the messages that chat completions answer with.")
    tool_call_parser: str | None = option(
        None,
        "models",
        "How tool calls are read from the output. Unset: by the model's chat template. none: not at all.",
    )
    reasoning_parser: str | None = option(
        None, "models", "How reasoning is told from the answer. Unset: by the model's chat template. none: not at all."
    )
    enable_auto_tool_choice: bool = option(
        True, "models", "Let the model decide whether it calls tools. Without it, requests with tools are refused."
    )
    trust_request_chat_template: bool = option(
        False, "models", "Let requests bring a chat template of their own, which is a program that runs here."
    )

    # ---- answers
    sse_keep_alive_interval: float = option(
        0.0,
        "answers",
        "Seconds of silence in a stream after which a comment is sent, so that proxies keep it. 0: never.",
        low=0.0,
    )
    enable_prompt_tokens_details: bool = option(
        False, "answers", "Say in usage how many tokens of the prompt came from the cache."
    )
    enable_force_include_usage: bool = option(False, "answers", "End every stream with usage, asked for or not.")
    return_tokens_as_token_ids: bool = option(
        False, "answers", "In log-probabilities, call tokens token_id:N instead of by their text."
    )

    # ---- operation
    middleware: list[str] = option(
        [],
        "operation",
        "Import path of an ASGI middleware class, or of an async function of a request and what answers it, to put "
        "round the server. Repeatable; the last is outermost.",
    )
    api_server_count: int = option(1, "operation", "Processes that answer HTTP.", low=1)
    shutdown_timeout: float = option(
        0.0,
        "operation",
        "Seconds that running requests have to end after SIGTERM. A second signal does not wait.",
        low=0.0,
    )
    disable_fastapi_docs: bool = option(False, "operation", "No /docs, /redoc and /openapi.json.")
    disable_uvicorn_access_log: bool = option(False, "operation", "Log no line for each HTTP request.")
    enable_log_requests: bool = option(False, "operation", "Log the prompt and parameters of each request.")
    max_log_len: int | None = option(
        None, "operation", "Most characters of a prompt, or token ids, in such a line. Unset: all.", low=0
    )
    uvicorn_log_level: Literal["debug", "info", "warning", "error", "critical"] = option(
        "info", "operation", "Least level of the HTTP server's own log."
    )


@cache
def serve_rows() -> dict[str, OptionRow]:
    """The table by name, in order."""
    return rows_of(ServeOptions)


def make_serve_options(values: Mapping[str, Any]) -> ServeOptions:
    """From names and values, each checked, and together. Raises ConfigurationError."""
    checked = check_values(serve_rows(), values)
    if not checked.get("api_key") and (key := env.read("OCTAVO_API_KEY")):
        checked["api_key"] = [key]
    options = ServeOptions(**checked)
    if (options.ssl_keyfile is None) != (options.ssl_certfile is None):
        raise ConfigurationError("ssl_keyfile and ssl_certfile are needed together")
    for name in ("ssl_ca_certs", "ssl_cert_reqs", "enable_ssl_refresh"):
        if getattr(options, name) and options.ssl_certfile is None:
            raise ConfigurationError(f"{name} needs ssl_keyfile and ssl_certfile: there is no TLS without them")
    if options.ssl_cert_reqs and options.ssl_ca_certs is None:
        raise ConfigurationError("ssl_cert_reqs needs ssl_ca_certs: without them no client certificate counts")
    if options.root_path and not options.root_path.startswith("/"):
        raise ConfigurationError(f"root_path must begin with /, got {options.root_path!r}")
    return options
