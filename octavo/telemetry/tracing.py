"""OpenTelemetry traces: one span for each request, with vLLM's attribute names. Needs the extra `tracing`."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from octavo.errors import ConfigurationError
from octavo.telemetry.finished import FinishedRequest

try:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
    from opentelemetry.trace import SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    _missing: ImportError | None = None
except ImportError as error:
    _missing = error


class Tracer:
    """Makes a span when a request has ended, with its start set back: a running request costs nothing."""

    def __init__(self, exporter: SpanExporter, model_name: str) -> None:
        _require()
        self.model_name = model_name
        # a provider of our own: a program that embeds the engine keeps its global one
        self._provider = TracerProvider(resource=Resource.create({"service.name": "octavo"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("octavo.llm_request")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to_endpoint(cls, endpoint: str, model_name: str) -> Tracer:
        """`endpoint`: http(s)://host:4318/v1/traces for OTLP over HTTP; grpc://host:4317, or any URL with port 4317,
        for OTLP over gRPC (grpcs:// with TLS). Raises ConfigurationError."""
        _require()
        return cls(_exporter(endpoint), model_name)

    def request(self, ended: FinishedRequest) -> None:
        end = time.time_ns()
        seconds = max((completion.seconds for completion in ended.completions), default=0.0)
        span = self._tracer.start_span(
            "llm_request",
            context=self._propagator.extract(ended.trace_headers),
            kind=SpanKind.SERVER,
            start_time=end - int(seconds * 1e9),
            attributes=attributes(ended, self.model_name, seconds),
        )
        if any(completion.finish_reason == "error" for completion in ended.completions):
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    def flush(self) -> None:
        self._provider.force_flush()

    def close(self) -> None:
        self._provider.shutdown()


def attributes(ended: FinishedRequest, model_name: str, seconds: float) -> dict[str, Any]:
    params = ended.params
    found: dict[str, Any] = {
        "gen_ai.response.model": model_name,
        "gen_ai.request.id": ended.request_id,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.n": params.n,
        "gen_ai.usage.num_sequences": len(ended.completions),
        "gen_ai.usage.prompt_tokens": ended.num_prompt_tokens,
        "gen_ai.usage.completion_tokens": sum(ended.num_tokens),
        "gen_ai.response.finish_reasons": [completion.finish_reason for completion in ended.completions],
        "gen_ai.latency.e2e": seconds,
    }
    if ended.completions:
        first = ended.completions[0]
        found["gen_ai.usage.cached_tokens"] = first.num_cached_tokens
        found["gen_ai.latency.time_to_first_token"] = first.first_token_seconds
        found["gen_ai.latency.time_in_queue"] = first.queue_seconds
        found["gen_ai.latency.time_in_model_prefill"] = first.prefill_seconds
        found["gen_ai.latency.time_in_model_decode"] = first.decode_seconds
        if first.prefill_seconds is not None and first.decode_seconds is not None:
            found["gen_ai.latency.time_in_model_inference"] = first.prefill_seconds + first.decode_seconds
    return {name: value for name, value in found.items() if value is not None}


def _require() -> None:
    if _missing is not None:
        raise _missing_package(_missing)


def _exporter(endpoint: str) -> SpanExporter:
    try:
        url = urlsplit(endpoint)
        is_grpc = url.scheme in ("grpc", "grpcs") or url.port == 4317
    except ValueError:
        url, is_grpc = urlsplit(""), False
    if url.scheme not in ("http", "https", "grpc", "grpcs") or not url.hostname:
        raise ConfigurationError(
            "otlp_traces_endpoint must be a URL such as http://localhost:4318/v1/traces or grpc://localhost:4317, "
            f"got {endpoint!r}"
        )
    protocol = "grpc" if is_grpc else "http"
    try:
        module = import_module(f"opentelemetry.exporter.otlp.proto.{protocol}.trace_exporter")
    except ImportError as error:
        raise _missing_package(error) from None
    if is_grpc:
        exporter: SpanExporter = module.OTLPSpanExporter(endpoint=url.netloc, insecure=url.scheme in ("http", "grpc"))
    else:
        exporter = module.OTLPSpanExporter(endpoint=endpoint)
    return exporter


def _missing_package(error: ImportError) -> ConfigurationError:
    return ConfigurationError(
        f"otlp_traces_endpoint needs {error.name}, which is not installed: pip install 'octavo[tracing]'"
    )
