"""What a scraper reads after work whose size is known, and that the tables agree with it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from octavo.config.engine_config import CacheConfig
from octavo.core.messages import BlockLife, StepStats
from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.engine.async_engine import AsyncEngine
from octavo.telemetry.metrics import SERIES, Histogram, Metrics, cache_info, length_bounds
from octavo.telemetry.recorder import Recorder
from tests.unit.engine.scripted import byte_level_tokenizer, echo, scripted_frontend
from tests.unit.server.simulated import simulated_engine

ROOT = Path(__file__).resolve().parents[3]
PROMPT = [1 + i % 40 for i in range(40)]

# the series that dashboards and autoscalers made for vLLM use
CORE = [
    "num_requests_running",
    "num_requests_waiting",
    "num_requests_waiting_by_reason",
    "kv_cache_usage_perc",
    "engine_sleep_state",
    "cache_config_info",
    "prompt_tokens",
    "generation_tokens",
    "prompt_tokens_by_source",
    "prompt_tokens_cached",
    "prompt_tokens_cached_by_source",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "external_prefix_cache_queries",
    "external_prefix_cache_hits",
    "mm_cache_queries",
    "mm_cache_hits",
    "num_preemptions",
    "request_success",
    "admission_rejections",
    "corrupted_requests",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_inference_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_max_num_generation_tokens",
    "request_params_n",
    "request_params_max_tokens",
    "iteration_tokens_total",
    "request_num_preemptions",
    "request_prefill_kv_computed_tokens",
]

FEATURES = [
    "kv_block_idle_before_evict_seconds",
    "kv_block_lifetime_seconds",
    "kv_block_reuse_gap_seconds",
    "lora_requests_info",
    "spec_decode_num_accepted_tokens",
    "spec_decode_num_accepted_tokens_per_pos",
    "spec_decode_num_draft_tokens",
    "spec_decode_num_drafts",
    "tool_call_parser_invocations",
]


class Scrape:
    """Sample values by name and labels, as Prometheus reads them."""

    def __init__(self, metrics: Metrics) -> None:
        body, content_type = metrics.render()
        assert content_type.startswith("text/plain")
        self.prefix = metrics.prefix
        self.families = {family.name: family for family in text_string_to_metric_families(body.decode())}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        found = [
            sample.value
            for sample in self.samples
            if sample.name == f"{self.prefix}:{name}" and labels.items() <= sample.labels.items()
        ]
        assert len(found) == 1, f"{name} {labels}: {len(found)} samples"
        return float(found[0])


def serve(engine: AsyncEngine, *jobs: AsyncIterator[Any]) -> Scrape:
    async def consume(job: AsyncIterator[Any]) -> None:
        async for _ in job:
            pass

    async def main() -> None:
        async with asyncio.timeout(20):
            for job in jobs:
                await consume(job)

    try:
        asyncio.run(main())
        assert engine.recorder is not None and engine.recorder.metrics is not None
        return Scrape(engine.recorder.metrics)
    finally:
        engine.shutdown()


def params(max_tokens: int = 5, **more: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, ignore_eos=True, detokenize=False, **more)


def ask(engine: AsyncEngine, prompt: list[int], sampling: SamplingParams) -> AsyncIterator[Any]:
    return engine.generate({"prompt_token_ids": prompt}, sampling)


@pytest.mark.parametrize("kind", [RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY])
def test_counts_and_times_of_two_requests_with_a_common_beginning(kind: RequestOutputKind) -> None:
    engine = simulated_engine(0.005)
    sampling = params(5, output_kind=kind)
    read = serve(engine, ask(engine, PROMPT, sampling), ask(engine, [*PROMPT[:32], 7, 8, 9], sampling))
    assert read("prompt_tokens_total") == 75
    assert read("generation_tokens_total") == 10
    assert read("prompt_tokens_cached_total") == 32  # two blocks of sixteen
    assert read("prompt_tokens_by_source_total", source="local_compute") == 43
    assert read("prompt_tokens_by_source_total", source="local_cache_hit") == 32
    assert read("prefix_cache_queries_total") == 75 and read("prefix_cache_hits_total") == 32
    assert read("request_success_total", finished_reason="length") == 2
    assert read("num_requests_running") == 0 and read("num_requests_waiting") == 0
    assert read("kv_cache_usage_perc") == 0
    assert read("iteration_tokens_total_count") == 10  # each request: its prompt, then four tokens
    assert read("iteration_tokens_total_sum") == 43 + 8
    assert read("request_prompt_tokens_sum") == 75 and read("request_generation_tokens_sum") == 10
    assert read("request_prefill_kv_computed_tokens_sum") == 43
    assert read("request_params_max_tokens_sum") == 10 and read("request_params_n_count") == 2
    # steps of five milliseconds and more: one to the first token, four to the others
    assert read("time_to_first_token_seconds_count") == 2 and read("time_to_first_token_seconds_sum") >= 0.01
    assert read("inter_token_latency_seconds_count") == 8
    decoding, intervals = read("request_decode_time_seconds_sum"), read("inter_token_latency_seconds_sum")
    assert 0.02 <= decoding < 10 and intervals == pytest.approx(decoding, rel=1e-6)
    per_token = read("request_time_per_output_token_seconds_sum")
    assert per_token == pytest.approx(decoding / 4, rel=0.01)
    prefill, queue = read("request_prefill_time_seconds_sum"), read("request_queue_time_seconds_sum")
    assert read("request_inference_time_seconds_sum") == pytest.approx(prefill + decoding)
    assert read("e2e_request_latency_seconds_sum") >= queue + prefill + decoding
    assert read("e2e_request_latency_seconds_bucket", le="+Inf") == 2


def test_n_completions_aborts_and_stop_strings() -> None:
    frontend, _ = scripted_frontend(echo, byte_level_tokenizer())
    engine = AsyncEngine.from_frontend(frontend)
    engine.record_with(Recorder(Metrics("scripted")))

    async def given_up() -> AsyncIterator[None]:
        outputs = engine.generate("hello there", SamplingParams(max_tokens=400, output_kind=RequestOutputKind.DELTA))
        async for _ in outputs:
            break
        await outputs.aclose()  # type: ignore[attr-defined]
        yield

    read = serve(
        engine,
        engine.generate("hello", SamplingParams(max_tokens=6, n=3, temperature=1.0)),
        given_up(),
        engine.generate("Once upon END of it", SamplingParams(max_tokens=50, stop="END", temperature=0)),
    )
    assert read("request_success_total", finished_reason="length") == 3
    assert read("request_success_total", finished_reason="abort") == 1
    assert read("request_success_total", finished_reason="stop") == 1
    assert read("request_params_n_sum") == 3 + 1 + 1
    assert read("request_max_num_generation_tokens_count") == 3
    assert read("e2e_request_latency_seconds_count") == 5


def test_waiting_and_running_while_there_is_work_and_preemptions() -> None:
    metrics = Metrics("m")
    metrics.step(StepStats(3, 4, 50, num_deferred=1, num_preempted=2, cache_usage=0.25, num_corrupted=1))
    metrics.step(StepStats(num_running=2, num_waiting=0, num_steps=0))  # an end that no step brought
    metrics.step(StepStats(3, 4, 50, num_deferred=1, num_preempted=2, cache_usage=0.25))
    read = Scrape(metrics)
    assert read("num_requests_running") == 3 and read("num_requests_waiting") == 4
    assert read("num_requests_waiting_by_reason", reason="capacity") == 3
    assert read("num_requests_waiting_by_reason", reason="deferred") == 1
    assert read("num_preemptions_total") == 4 and read("corrupted_requests_total") == 1
    assert read("kv_cache_usage_perc") == 0.25 and read("iteration_tokens_total_count") == 2


def test_merged_steps_count_as_so_many() -> None:
    metrics = Metrics("m")
    metrics.step(StepStats(1, 0, 300, num_steps=3))
    read = Scrape(metrics)
    assert read("iteration_tokens_total_count") == 3 and read("iteration_tokens_total_sum") == 300
    assert read("iteration_tokens_total_bucket", le="64.0") == 0
    assert read("iteration_tokens_total_bucket", le="128.0") == 3


def test_every_core_series_is_there_from_the_start_under_either_prefix() -> None:
    for prefix in ("octavo", "vllm"):
        metrics = Metrics("model/name", prefix=prefix, engine="1", cache_info=cache_info(CacheConfig(), 77))
        families = Scrape(metrics).families
        for name in CORE:
            family = families[f"{prefix}:{name}"]
            if family.type != "histogram" or family.samples:
                assert family.samples, name
            for sample in family.samples:
                assert sample.labels["model_name"] == "model/name" and sample.labels["engine"] == "1"
        info = families[f"{prefix}:cache_config_info"].samples[0].labels
        assert info["block_size"] == "16" and info["num_gpu_blocks"] == "77"
        assert info["gpu_memory_utilization"] == "0.92"
        assert "process_cpu_seconds" in families  # beside ours


@pytest.mark.parametrize("prefix", ["octavo", "vllm"])
def test_series_of_features_appear_with_their_feature(prefix: str) -> None:
    absent = {f"{prefix}:{row.name}" for row in SERIES if row.feature}
    assert {name.partition(":")[2] for name in absent} == set(FEATURES)
    assert not absent & set(Scrape(Metrics("m", prefix=prefix)).families)
    metrics = Metrics("m", prefix=prefix, block_lives=True)
    metrics.step(StepStats(block_lives=[BlockLife(30.0, 5.0, [2.0, 0.25]), BlockLife(0.5, 0.5, [])]))
    metrics.drafts(2, 6, [2, 1, 0])
    metrics.tool_call_parser(streaming=True, found=True, request_type="chat")
    metrics.lora_requests(4, ["a", "b"], [])
    metrics.rejection("max_num_queued_reqs")
    metrics.external_cache(100, 20)
    metrics.media_cache(3, 1)
    read = Scrape(metrics)
    assert absent <= set(read.families)
    assert read("kv_block_lifetime_seconds_sum") == 30.5 and read("kv_block_lifetime_seconds_count") == 2
    assert read("kv_block_idle_before_evict_seconds_bucket", le="0.5") == 1
    assert read("kv_block_reuse_gap_seconds_count") == 2 and read("kv_block_reuse_gap_seconds_sum") == 2.25
    assert read("spec_decode_num_accepted_tokens_total") == 3
    assert read("spec_decode_num_accepted_tokens_per_pos_total", position="1") == 1
    assert read("tool_call_parser_invocations_total", mode="streaming", outcome="tool_call", request_type="chat") == 1
    assert read("lora_requests_info", running_lora_adapters="a,b", max_lora="4") == 1
    assert read("admission_rejections_total", reason="max_num_queued_reqs") == 1
    assert read("external_prefix_cache_hits_total") == 20 and read("mm_cache_queries_total") == 3


def test_openmetrics_where_the_scraper_asks_for_it() -> None:
    body, content_type = Metrics("m").render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text") and body.endswith(b"# EOF\n")


def test_histogram_bounds_are_inclusive_and_counts_cumulative() -> None:
    histogram = Histogram((1, 2, 5))
    for value, count in ((1, 1), (1.5, 2), (5, 1), (9, 1)):
        histogram.observe(value, count)
    assert histogram.buckets() == [("1.0", 1), ("2.0", 3), ("5.0", 4), ("+Inf", 5)]
    assert histogram.sum == 1 + 3 + 5 + 9
    assert length_bounds(1000) == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] and length_bounds(30)[-1] == 20


def test_the_guide_lists_every_series() -> None:
    text = (ROOT / "docs" / "guides" / "metrics.md").read_text(encoding="utf-8")
    rows = {match[1]: match[2] for match in re.finditer(r"^\| `(\w+)` \| (\w+) \|", text, re.M)}
    names = {row.name + ("_total" if row.kind == "counter" else ""): row.kind for row in SERIES}
    assert rows == names


def test_the_dashboard_asks_for_series_that_exist() -> None:
    board = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text(encoding="utf-8"))
    assert {variable["name"] for variable in board["templating"]["list"]} >= {"prefix", "model_name", "datasource"}
    exposed = set()
    for row in SERIES:
        suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}[row.kind]
        exposed |= {row.name + suffix for suffix in suffixes}
    asked = set()
    ids = set()
    for panel in board["panels"]:
        assert panel["id"] not in ids
        ids.add(panel["id"])
        for target in panel.get("targets", ()):
            found = re.findall(r"\$\{prefix\}:(\w+)", target["expr"])
            assert found, target["expr"]
            asked |= set(found)
    assert asked <= exposed and len(asked) > 15
