"""One span a request, with what it asked for, what it got and how long each part took."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.errors import ConfigurationError
from octavo.telemetry import tracing
from octavo.telemetry.finished import current_trace, trace_headers
from octavo.telemetry.recorder import Recorder
from octavo.telemetry.tracing import Tracer
from tests.unit.server.simulated import simulated_engine

in_memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_span_for_each_request_joins_the_callers_trace() -> None:
    exporter = in_memory.InMemorySpanExporter()
    tracer = Tracer(exporter, "simulated")
    engine = simulated_engine(0.005)
    engine.record_with(Recorder(tracer=tracer))

    async def main() -> None:
        params = SamplingParams(
            max_tokens=4, temperature=0.5, top_p=0.9, ignore_eos=True, detokenize=False, n=2,
            output_kind=RequestOutputKind.DELTA,
        )  # fmt: skip
        headers = trace_headers({"traceparent": PARENT, "cookie": "secret"})
        current_trace.set({"traceparent": PARENT.replace("b7ad6b7169203331", "0000000000000001")})
        assert headers == {"traceparent": PARENT}
        prompt: Any = {"prompt_token_ids": list(range(1, 21))}
        async for _ in engine.generate(prompt, params, "mine", trace_headers=headers):
            pass
        async for _ in engine.generate(prompt, params, "the context's"):
            pass

    try:
        asyncio.run(main())
    finally:
        engine.shutdown()
    tracer.flush()
    span, other = exporter.get_finished_spans()
    tracer.close()
    assert other.context.trace_id == span.context.trace_id and other.parent.span_id == 1
    assert span.name == "llm_request" and f"{span.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]
    found = span.attributes
    assert found["gen_ai.request.id"] == "mine" and found["gen_ai.response.model"] == "simulated"
    assert found["gen_ai.request.temperature"] == 0.5 and found["gen_ai.request.top_p"] == 0.9
    assert found["gen_ai.request.max_tokens"] == 4 and found["gen_ai.request.n"] == 2
    assert found["gen_ai.usage.prompt_tokens"] == 20 and found["gen_ai.usage.completion_tokens"] == 8
    assert found["gen_ai.response.finish_reasons"] == ("length", "length")
    end_to_end = found["gen_ai.latency.e2e"]
    assert 0.02 <= end_to_end < 5 and (span.end_time - span.start_time) / 1e9 == pytest.approx(end_to_end, abs=1e-3)
    parts = [found[f"gen_ai.latency.time_in_{part}"] for part in ("queue", "model_prefill", "model_decode")]
    assert all(part >= 0 for part in parts) and sum(parts) <= end_to_end + 1e-3
    assert found["gen_ai.latency.time_to_first_token"] < end_to_end


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_missing", ImportError("no", name="opentelemetry.sdk"))
    with pytest.raises(ConfigurationError, match=r"opentelemetry\.sdk.*octavo\[tracing\]"):
        Tracer.to_endpoint("http://localhost:4318/v1/traces", "m")


def test_a_missing_exporter_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ImportError("no", name=name)

    monkeypatch.setattr(tracing, "import_module", refuse)
    with pytest.raises(ConfigurationError, match=r"otlp\.proto\.grpc.*octavo\[tracing\]"):
        Tracer.to_endpoint("http://localhost:4317", "m")


@pytest.mark.parametrize("endpoint", ["localhost", "ftp://host", "http://", "http://host:port"])
def test_an_endpoint_that_is_none(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="otlp_traces_endpoint must be a URL"):
        Tracer.to_endpoint(endpoint, "m")
