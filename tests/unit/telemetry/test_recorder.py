"""Which options make which parts."""

from __future__ import annotations

import pytest

from octavo.errors import ConfigurationError
from octavo.telemetry.recorder import Recorder
from tests.unit.config.test_resolve import run


def test_what_the_options_ask_for() -> None:
    plain = Recorder.from_config(run().config, "tiny")
    assert plain.metrics is not None and plain.log is not None and plain.live is not None and plain.tracer is None
    assert plain.metrics.prefix == "octavo" and plain.live.hello.budget == 2048
    assert plain.metrics.cache_info["enable_prefix_caching"] == "True"
    assert Recorder.from_config(run(metrics_prefix="vllm").config, "tiny").metrics.prefix == "vllm"  # type: ignore[union-attr]
    assert "octavo:kv_block_lifetime_seconds" not in plain.metrics.render()[0].decode()
    assert run(kv_cache_metrics_sample=0.5).config.machine.block_lives_sample == 0
    watching = run(kv_cache_metrics=True, kv_cache_metrics_sample=0.5).config
    assert watching.machine.block_lives_sample == 0.5
    assert b"octavo:kv_block_lifetime_seconds" in Recorder.from_config(watching, "tiny").metrics.render()[0]  # type: ignore[union-attr]
    assert run(kv_cache_metrics=True, disable_log_stats=True).config.machine.block_lives_sample == 0
    off = Recorder.from_config(run(disable_log_stats=True).config, "tiny")
    assert off.metrics is None and off.log is None and off.live is None


def test_traces_where_an_endpoint_is_named() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    endpoint = "http://127.0.0.1:9/v1/traces"
    recorder = Recorder.from_config(run(otlp_traces_endpoint=endpoint, disable_log_stats=True).config, "tiny")
    assert recorder.tracer is not None and recorder.metrics is None
    recorder.close()
    recorder.close()
    with pytest.raises(ConfigurationError, match="otlp_traces_endpoint"):
        Recorder.from_config(run(otlp_traces_endpoint="nowhere").config, "tiny")
