"""What Prometheus reads at /metrics: vLLM's series under a prefix of the user's choice.

Values are plain numbers that one thread (the front end's event loop) adds to; families are made from them when somebody
scrapes. A step costs a few additions, whatever the number of series.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any, Literal

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from octavo.config.engine_config import CacheConfig
from octavo.core.messages import StepStats
from octavo.core.request import FinishReason
from octavo.telemetry.finished import FinishedCompletion, FinishedRequest

PREFIXES = ("octavo", "vllm")
REJECTIONS = ("max_num_queued_reqs", "max_num_queued_tokens")
SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")

Kind = Literal["gauge", "counter", "histogram"]

# Seconds. Dashboards written for vLLM interpolate between bounds, so finer ones only make them sharper.
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
               80.0, 160.0, 640.0, 2560.0)  # fmt: skip
PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
             10.0, 20.0, 40.0, 80.0)  # fmt: skip
LATENCY = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0,
           60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
RESIDENCE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0,
             600.0, 1200.0, 1800.0)  # fmt: skip
COUNT = (1, 2, 5, 10, 20)
PREEMPTIONS = (0, 1, 2, 3, 5, 10, 20)
LENGTH = ()  # 1, 2, 5, 10, ... up to the model's length


@dataclass(frozen=True)
class Series:
    """A row of the table of series. A counter is exposed with `_total` behind its name, a histogram with `_bucket`,
    `_sum` and `_count`. A `feature` is what must be in use for the series to appear."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()  # beside model_name and engine
    bounds: tuple[float, ...] = ()
    feature: str = ""


SERIES = (
    # the core, as of its last step
    Series("num_requests_running", "gauge", "Requests that take part in steps."),
    Series("num_requests_waiting", "gauge", "Requests that wait to start."),
    Series(
        "num_requests_waiting_by_reason",
        "gauge",
        "Waiting requests: for room (capacity), or for something else such as a prefix in the making (deferred).",
        ("reason",),
    ),
    Series("kv_cache_usage_perc", "gauge", "Share of the cache that requests hold; 1 is all of it."),
    Series("engine_sleep_state", "gauge", "1 for the state that the engine is in.", ("sleep_state",)),
    Series("cache_config_info", "gauge", "The cache's configuration, as labels; always 1.", ("(settings)",)),
    Series(
        "lora_requests_info",
        "gauge",
        "Adapters with running and waiting requests, as labels.",
        ("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        feature="LoRA",
    ),
    # the core, since the start
    Series("prompt_tokens", "counter", "Tokens of prompts whose first token has been made."),
    Series("generation_tokens", "counter", "Tokens made."),
    Series("prompt_tokens_by_source", "counter", "Prompt tokens: computed, or found in a cache.", ("source",)),
    Series("prompt_tokens_cached", "counter", "Prompt tokens found in a cache."),
    Series("prompt_tokens_cached_by_source", "counter", "Cached prompt tokens, by where they were.", ("source",)),
    Series("prefix_cache_queries", "counter", "Prompt tokens looked up in the prefix cache."),
    Series("prefix_cache_hits", "counter", "Prompt tokens found in the prefix cache."),
    Series("external_prefix_cache_queries", "counter", "Prompt tokens looked up outside this engine."),
    Series("external_prefix_cache_hits", "counter", "Prompt tokens found outside this engine."),
    Series("mm_cache_queries", "counter", "Media items looked up in the cache of processed media."),
    Series("mm_cache_hits", "counter", "Media items found there."),
    Series("num_preemptions", "counter", "Times a running request gave its blocks back."),
    Series("corrupted_requests", "counter", "Requests that ended because their results were not finite."),
    Series(
        "kv_block_lifetime_seconds",
        "histogram",
        "From when a cached block was taken until its content gave way.",
        bounds=RESIDENCE,
        feature="--kv-cache-metrics",
    ),
    Series(
        "kv_block_idle_before_evict_seconds",
        "histogram",
        "From when a cached block was taken, or last found, until its content gave way.",
        bounds=RESIDENCE,
        feature="--kv-cache-metrics",
    ),
    Series(
        "kv_block_reuse_gap_seconds",
        "histogram",
        "Between two times that a cached block was found.",
        bounds=RESIDENCE,
        feature="--kv-cache-metrics",
    ),
    Series("iteration_tokens_total", "histogram", "Tokens computed in a step.", bounds=STEP_TOKENS),
    # this front end's requests
    Series("request_success", "counter", "Requests that have ended, by why.", ("finished_reason",)),
    Series("admission_rejections", "counter", "Requests turned away at the door, by which limit.", ("reason",)),
    Series(
        "tool_call_parser_invocations",
        "counter",
        "Answers searched for tool calls, by what was found.",
        ("mode", "outcome", "request_type"),
        feature="tool calling",
    ),
    Series("time_to_first_token_seconds", "histogram", "From arrival to the first token.", bounds=FIRST_TOKEN),
    Series("inter_token_latency_seconds", "histogram", "Between two tokens of a request.", bounds=PER_TOKEN),
    Series(
        "request_time_per_output_token_seconds",
        "histogram",
        "A request's mean time for a token after its first.",
        bounds=PER_TOKEN,
    ),
    Series("e2e_request_latency_seconds", "histogram", "From arrival to the end.", bounds=LATENCY),
    Series("request_queue_time_seconds", "histogram", "From the core's queue to its first step.", bounds=LATENCY),
    Series("request_inference_time_seconds", "histogram", "From its first step to its last token.", bounds=LATENCY),
    Series("request_prefill_time_seconds", "histogram", "From its first step to its first token.", bounds=LATENCY),
    Series("request_decode_time_seconds", "histogram", "From its first token to its last.", bounds=LATENCY),
    Series("request_prompt_tokens", "histogram", "Tokens of a prompt.", bounds=LENGTH),
    Series("request_generation_tokens", "histogram", "Tokens of an answer.", bounds=LENGTH),
    Series("request_max_num_generation_tokens", "histogram", "Tokens of the longest of n answers.", bounds=LENGTH),
    Series("request_params_n", "histogram", "The parameter n.", bounds=COUNT),
    Series("request_params_max_tokens", "histogram", "The parameter max_tokens.", bounds=LENGTH),
    Series("request_num_preemptions", "histogram", "Times a request was preempted.", bounds=PREEMPTIONS),
    Series(
        "request_prefill_kv_computed_tokens",
        "histogram",
        "Prompt tokens of a request that were computed, not found in the cache.",
        bounds=LENGTH,
    ),
    # speculative decoding
    Series("spec_decode_num_drafts", "counter", "Drafts verified.", feature="speculative decoding"),
    Series("spec_decode_num_draft_tokens", "counter", "Tokens drafted.", feature="speculative decoding"),
    Series("spec_decode_num_accepted_tokens", "counter", "Drafted tokens kept.", feature="speculative decoding"),
    Series(
        "spec_decode_num_accepted_tokens_per_pos",
        "counter",
        "Drafted tokens kept, by their place in the draft.",
        ("position",),
        feature="speculative decoding",
    ),
)


class Histogram:
    """Counts under bounds. `observe` takes many equal values at the price of one."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)  # the last: above every bound
        self.sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def buckets(self) -> list[tuple[str, int]]:
        """Cumulative, as the exposition format wants them."""
        names = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(names, accumulate(self.counts), strict=True))


def length_bounds(longest: int) -> list[int]:
    """1, 2, 5, 10, 20, ... up to `longest`."""
    bounds, unit = [], 1
    while unit <= longest:
        bounds += [step * unit for step in (1, 2, 5) if step * unit <= longest]
        unit *= 10
    return bounds or [1]


class Metrics:
    """The series of one engine. Owned by the event loop; `render` too is called there."""

    def __init__(
        self,
        model_name: str,
        *,
        prefix: str = "octavo",
        engine: str = "0",
        max_model_len: int = 1 << 17,
        cache_info: Mapping[str, str] | None = None,
        block_lives: bool = False,
    ) -> None:
        self.prefix = prefix
        self.labels = {"model_name": model_name, "engine": engine}
        self.cache_info = dict(cache_info or {})
        self._stats = StepStats()
        self._counters: dict[str, dict[tuple[str, ...], float]] = {}
        self._histograms: dict[str, Histogram] = {}
        self._lora: tuple[str, ...] | None = None
        for row in SERIES:
            if row.kind == "counter":
                self._counters[row.name] = {} if row.labels or row.feature else {(): 0}
            elif row.kind == "histogram" and (not row.feature or block_lives):
                self._histograms[row.name] = Histogram(row.bounds or length_bounds(max_model_len))
        for name, values in (
            ("prompt_tokens_by_source", ("local_compute", "local_cache_hit", "external_kv_transfer")),
            ("prompt_tokens_cached_by_source", ("device",)),
            ("request_success", tuple(str(reason) for reason in FinishReason)),
            ("admission_rejections", REJECTIONS),
        ):
            self._counters[name] = {(value,): 0 for value in values}
        self._step_tokens = self._histograms["iteration_tokens_total"]
        self._intervals = self._histograms["inter_token_latency_seconds"]
        self._registry = CollectorRegistry()
        self._registry.register(self)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)

    # ---- what happens

    def step(self, stats: StepStats) -> None:
        self._stats = stats
        if not stats.num_steps:
            return
        self._step_tokens.observe(stats.num_scheduled_tokens / stats.num_steps, stats.num_steps)
        self._add("generation_tokens", stats.num_generated_tokens)
        if stats.num_prompt_tokens:
            cached = stats.num_prompt_tokens_cached
            self._add("prompt_tokens", stats.num_prompt_tokens)
            self._add("prompt_tokens_cached", cached)
            self._add("prompt_tokens_by_source", stats.num_prompt_tokens - cached, "local_compute")
            self._add("prompt_tokens_by_source", cached, "local_cache_hit")
            self._add("prompt_tokens_cached_by_source", cached, "device")
        if stats.num_prefix_queries or stats.num_prefix_hits:
            self._add("prefix_cache_queries", stats.num_prefix_queries)
            self._add("prefix_cache_hits", stats.num_prefix_hits)
        for life in stats.block_lives or ():
            self._observe("kv_block_lifetime_seconds", life.lifetime)
            self._observe("kv_block_idle_before_evict_seconds", life.idle)
            for gap in life.reuse_gaps:
                self._observe("kv_block_reuse_gap_seconds", gap)
        if stats.num_preempted:
            self._add("num_preemptions", stats.num_preempted)
        if stats.num_corrupted:
            self._add("corrupted_requests", stats.num_corrupted)

    def first_token(self, seconds: float) -> None:
        self._observe("time_to_first_token_seconds", seconds)

    def interval(self, seconds: float, count: int = 1) -> None:
        """`count` tokens came so long after the ones before them."""
        self._intervals.observe(seconds, count)

    def completion(self, ended: FinishedCompletion) -> None:
        self._add("request_success", 1, ended.finish_reason)
        self._observe("e2e_request_latency_seconds", ended.seconds)
        self._observe("request_prompt_tokens", ended.num_prompt_tokens)
        self._observe("request_generation_tokens", ended.num_tokens)
        if ended.queue_seconds is not None:
            self._observe("request_queue_time_seconds", ended.queue_seconds)
            self._observe("request_num_preemptions", ended.num_preemptions)
        if ended.prefill_seconds is not None and ended.decode_seconds is not None:
            self._observe("request_prefill_time_seconds", ended.prefill_seconds)
            self._observe("request_decode_time_seconds", ended.decode_seconds)
            self._observe("request_inference_time_seconds", ended.prefill_seconds + ended.decode_seconds)
            self._observe("request_prefill_kv_computed_tokens", ended.num_prompt_tokens - ended.num_cached_tokens)
            if ended.num_tokens > 1:
                per_token = ended.decode_seconds / (ended.num_tokens - 1)
                self._observe("request_time_per_output_token_seconds", per_token)

    def request(self, ended: FinishedRequest) -> None:
        self._observe("request_params_n", ended.params.n)
        self._observe("request_max_num_generation_tokens", max(ended.num_tokens))
        if ended.params.max_tokens is not None:
            self._observe("request_params_max_tokens", ended.params.max_tokens)

    def rejection(self, reason: str) -> None:
        """A request was turned away; `reason` is the option that set the limit."""
        self._add("admission_rejections", 1, reason)

    def tool_call_parser(self, *, streaming: bool, found: bool, request_type: str) -> None:
        mode, outcome = "streaming" if streaming else "non_streaming", "tool_call" if found else "no_tool_call"
        self._add("tool_call_parser_invocations", 1, mode, outcome, request_type)

    def lora_requests(self, max_loras: int, running: Sequence[str], waiting: Sequence[str]) -> None:
        self._lora = (str(max_loras), ",".join(running), ",".join(waiting))

    def drafts(self, num_drafts: int, num_tokens: int, accepted_by_position: Sequence[int]) -> None:
        """A step's verified drafts: their tokens, and how many drafts were kept up to each position."""
        self._add("spec_decode_num_drafts", num_drafts)
        self._add("spec_decode_num_draft_tokens", num_tokens)
        self._add("spec_decode_num_accepted_tokens", sum(accepted_by_position))
        for position, count in enumerate(accepted_by_position):
            self._add("spec_decode_num_accepted_tokens_per_pos", count, str(position))

    def external_cache(self, queries: int, hits: int) -> None:
        self._add("external_prefix_cache_queries", queries)
        self._add("external_prefix_cache_hits", hits)

    def media_cache(self, queries: int, hits: int) -> None:
        self._add("mm_cache_queries", queries)
        self._add("mm_cache_hits", hits)

    def _add(self, name: str, amount: float, *labels: str) -> None:
        values = self._counters[name]
        values[labels] = values.get(labels, 0) + amount

    def _observe(self, name: str, value: float) -> None:
        self._histograms[name].observe(value if value > 0.0 else 0.0)

    # ---- what is read

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type, in the format that a scraper's Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        gauges = self._gauges()
        names, values = tuple(self.labels), tuple(self.labels.values())
        for row in SERIES:
            full = f"{self.prefix}:{row.name}"
            if row.kind == "histogram":
                held = self._histograms.get(row.name)
                if held is None:
                    continue
                histogram = HistogramMetricFamily(full, row.text, labels=names)
                histogram.add_metric(values, held.buckets(), held.sum)
                yield histogram
                continue
            samples = gauges.get(row.name, {}) if row.kind == "gauge" else self._counters[row.name]
            if not samples:
                continue
            labels = tuple(self.cache_info) if row.name == "cache_config_info" else row.labels
            family: Any = GaugeMetricFamily if row.kind == "gauge" else CounterMetricFamily
            made = family(full, row.text, labels=names + labels)
            for more, value in samples.items():
                made.add_metric(values + more, value)
            yield made

    def _gauges(self) -> dict[str, dict[tuple[str, ...], float]]:
        stats = self._stats
        deferred = min(stats.num_deferred, stats.num_waiting)
        return {
            "num_requests_running": {(): stats.num_running},
            "num_requests_waiting": {(): stats.num_waiting},
            "num_requests_waiting_by_reason": {
                ("capacity",): stats.num_waiting - deferred,
                ("deferred",): deferred,
            },
            "kv_cache_usage_perc": {(): stats.cache_usage},
            "engine_sleep_state": {(state,): float(state == "awake") for state in SLEEP_STATES},
            "cache_config_info": {tuple(self.cache_info.values()): 1} if self.cache_info else {},
            "lora_requests_info": {self._lora: 1} if self._lora is not None else {},
        }


def cache_info(config: CacheConfig, num_blocks: int | None = None) -> dict[str, str]:
    """The labels of cache_config_info: vLLM's names where the meaning is theirs."""
    names = {
        "memory_bytes": "kv_cache_memory_bytes",
        "memory_fraction": "gpu_memory_utilization",
        "num_blocks_override": "num_gpu_blocks_override",
        "hash_algo": "prefix_caching_hash_algo",
    }
    info = {names.get(field.name, field.name): str(getattr(config, field.name)) for field in fields(config)}
    return {**info, "num_gpu_blocks": str(num_blocks)}
