"""The live view: what steps do, told at most ten times a second to whoever listens, and computed only then."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from octavo.core.messages import StepStats

TICK = 0.1  # seconds between events while there are steps
HEARTBEAT = 1.0  # seconds between events while there are none
LEASE = 5.0  # seconds for which the core is asked for shares; asked again well before they are over
MAX_BARS = 8  # an event shows more steps than this merged
MAX_PARTS = 32  # requests shown apart in a bar; the smallest others are summed up
MAX_STEPS = 4096  # kept between two events
MAX_BACKLOG = 20  # events a slow listener may be behind before it misses some
MAX_LISTENERS = 64
MAX_NUMBERS = 4096  # requests whose number is remembered

Part = tuple[int, int, int, int]  # number (in a bar's `others`: how many), prefill, decode, cached tokens


class Bar(msgspec.Struct, omit_defaults=True):
    """One step, or the sum of several in a row."""

    parts: list[Part]
    steps: int = 1
    ms: float = 0.0  # mean duration of a step
    others: Part | None = None


class Hello(msgspec.Struct, tag_field="type", tag="hello"):
    """The first event: what does not change."""

    model: str
    budget: int  # tokens a step may compute
    max_requests: int  # that a step may hold


class Tick(msgspec.Struct, tag_field="type", tag="tick"):
    """What happened since the last event, and where things stand."""

    seconds: float  # that this event covers
    running: int
    waiting: int
    cache: float  # share of the cache in use
    steps: int = 0
    prefill: int = 0  # tokens, as the following
    generated: int = 0
    cached: int = 0
    queries: int = 0
    hits: int = 0
    preempted: int = 0
    step_ms: float = 0.0  # mean
    host_ms: float = 0.0  # of it, planning and updating
    bars: list[Bar] = []


class LiveView:
    """Owned by one event loop. Requests are told apart by running numbers: their ids are nobody else's business."""

    def __init__(self, model_name: str, budget: int, max_requests: int) -> None:
        self.hello = Hello(model_name, budget, max_requests)
        self.watch: Callable[[float], object] = lambda seconds: None  # asks the core for shares for so long
        self._listeners: set[_Listener] = set()
        self._steps: deque[StepStats] = deque(maxlen=MAX_STEPS)
        self._latest = StepStats()
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._next_number = 0
        self._ticker: asyncio.Task[None] | None = None

    @property
    def num_listeners(self) -> int:
        return len(self._listeners)

    @property
    def is_full(self) -> bool:
        return len(self._listeners) >= MAX_LISTENERS

    def step(self, stats: StepStats) -> None:
        self._latest = stats
        if self._listeners and stats.num_steps:
            self._steps.append(stats)

    def close(self) -> None:
        """Ends every stream, on the event loop: a server that stops need not wait for its readers."""
        for listener in self._listeners:
            listener.end()

    async def listen(self) -> AsyncIterator[bytes]:
        """Events as JSON, until the iterator or the view is closed."""
        listener = _Listener()
        self._listeners.add(listener)
        listener.push(msgspec.json.encode(self.hello))
        listener.push(msgspec.json.encode(self._tick([], 0.0)))
        if self._ticker is None or self._ticker.done():
            self._steps.clear()
            self._ticker = asyncio.get_running_loop().create_task(self._run())
        try:
            while (event := await listener.pop()) is not None:
                yield event
        finally:
            self._listeners.discard(listener)

    async def _run(self) -> None:
        """Lives as long as somebody listens."""
        last = time.monotonic()
        asked = 0.0
        while self._listeners:
            now = time.monotonic()
            if now - asked >= LEASE / 2:
                self.watch(LEASE)
                asked = now
            if self._steps or now - last >= HEARTBEAT:
                steps = list(self._steps)
                self._steps.clear()
                event = msgspec.json.encode(self._tick(steps, now - last))
                last = now
                for listener in self._listeners:
                    listener.push(event)
            await asyncio.sleep(TICK)

    def _tick(self, steps: Sequence[StepStats], seconds: float) -> Tick:
        latest = self._latest
        tick = Tick(seconds, latest.num_running, latest.num_waiting, round(latest.cache_usage, 4))
        if not steps:
            return tick
        tick.steps = sum(stats.num_steps for stats in steps)
        for stats in steps:
            tick.prefill += stats.num_prefill_tokens
            tick.generated += stats.num_generated_tokens
            tick.cached += stats.num_cached_tokens
            tick.queries += stats.num_prefix_queries
            tick.hits += stats.num_prefix_hits
            tick.preempted += stats.num_preempted
            tick.step_ms += stats.step_seconds
            tick.host_ms += stats.schedule_seconds + stats.update_seconds
        tick.step_ms = round(1e3 * tick.step_ms / tick.steps, 3)
        tick.host_ms = round(1e3 * tick.host_ms / tick.steps, 3)
        merged = -(-len(steps) // MAX_BARS)
        tick.bars = [self._bar(steps[at : at + merged]) for at in range(0, len(steps), merged)]
        return tick

    def _bar(self, steps: Sequence[StepStats]) -> Bar:
        num_steps = sum(stats.num_steps for stats in steps)
        sums: dict[int, tuple[int, int, int]] = {}
        unknown = [0, 0, 0]  # prefill, decode, cached: of steps planned before the core knew that somebody watches
        for stats in steps:
            if stats.shares is None:
                decode = stats.num_scheduled_tokens - stats.num_prefill_tokens
                for i, count in enumerate((stats.num_prefill_tokens, decode, stats.num_cached_tokens)):
                    unknown[i] += count
                continue
            for share in stats.shares:
                number = self._number(share.request_id)
                prefill, decode, cached = sums.get(number, (0, 0, 0))
                if share.is_prefill:
                    prefill += share.num_tokens
                else:
                    decode += share.num_tokens
                sums[number] = (prefill, decode, cached + share.num_cached_tokens)
        order = sorted(sums, key=lambda number: sum(sums[number]), reverse=True)
        rest: list[Sequence[int]] = [sums[number] for number in order[MAX_PARTS:]]
        if any(unknown):
            rest.append(unknown)
        parts = [(number, *sums[number]) for number in sorted(order[:MAX_PARTS])]
        bar = Bar(parts, num_steps)
        bar.ms = round(1e3 * sum(stats.step_seconds for stats in steps) / num_steps, 3)
        if rest:
            bar.others = (len(rest), sum(t[0] for t in rest), sum(t[1] for t in rest), sum(t[2] for t in rest))
        return bar

    def _number(self, request_id: str) -> int:
        number = self._numbers.get(request_id)
        if number is None:
            number = self._numbers[request_id] = self._next_number
            self._next_number += 1
            if len(self._numbers) > MAX_NUMBERS:
                self._numbers.popitem(last=False)
        else:
            self._numbers.move_to_end(request_id)
        return number


class _Listener:
    def __init__(self) -> None:
        self._events: deque[bytes] = deque(maxlen=MAX_BACKLOG)
        self._news = asyncio.Event()
        self._is_over = False

    def push(self, event: bytes) -> None:
        self._events.append(event)
        self._news.set()

    def end(self) -> None:
        self._is_over = True
        self._news.set()

    async def pop(self) -> bytes | None:
        """None: there will be no more."""
        while not self._events:
            if self._is_over:
                return None
            self._news.clear()
            await self._news.wait()
        return self._events.popleft()
