"""What front ends are yet to be sent. One that does not read is never waited for: its outputs merge, so that it costs
at most one delta for each of its requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from octavo.core.messages import Delta, Reply, StepOutputs, StepStats

# Values of a moment: the newest counts. Other numbers of StepStats are amounts: they add up.
_GAUGES = frozenset({"num_running", "num_waiting", "num_deferred", "cache_usage"})

_MAX_DETAILS = 8192  # for a front end that does not read: then its amounts are enough

Send = Callable[[StepOutputs | Reply], bool]  # False: not now


class Outbox:
    """Of one front end. `send` never waits."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._replies: list[Reply] = []
        self._deltas: dict[str, _Growing] = {}
        self._started: list[str] = []
        self._stats: StepStats | None = None

    @property
    def is_empty(self) -> bool:
        return not (self._replies or self._deltas or self._started or self._stats is not None)

    def put(self, outputs: StepOutputs) -> None:
        """Sends at once where that is possible."""
        if self.is_empty:
            if self._send(outputs):
                return
        elif self.flush() and self._send(outputs):
            return
        self._keep(outputs)

    def put_stats(self, stats: StepStats) -> None:
        """Counters alone: they go with the next outputs, or with `flush`."""
        self._stats = stats if self._stats is None else merge_stats(self._stats, stats)

    def put_reply(self, reply: Reply) -> None:
        if self._replies or not self._send(reply):
            self._replies.append(reply)

    def flush(self) -> bool:
        """Whether everything has been sent."""
        while self._replies:
            if not self._send(self._replies[0]):
                return False
            del self._replies[0]
        if self._deltas or self._started or self._stats is not None:
            deltas = [growing.delta() for growing in self._deltas.values()]
            if not self._send(StepOutputs(deltas, self._stats, self._started)):
                return False
            self._deltas, self._started, self._stats = {}, [], None
        return True

    def _keep(self, outputs: StepOutputs) -> None:
        self._started += outputs.started
        for delta in outputs.deltas:
            growing = self._deltas.get(delta.request_id)
            if growing is None:
                self._deltas[delta.request_id] = _Growing(delta)
            else:
                growing.add(delta)
        if outputs.stats is not None:
            self.put_stats(outputs.stats)


class _Growing:
    """Deltas of one request, as one."""

    __slots__ = ("_last", "_logprobs", "_token_ids")

    def __init__(self, delta: Delta) -> None:
        self._last = delta
        self._token_ids: list[int] | None = None  # None: those of the only delta
        self._logprobs: list[Any] | None = None

    def add(self, delta: Delta) -> None:
        last = self._last
        if self._token_ids is None:
            self._token_ids, self._logprobs = list(last.token_ids), list(last.logprobs or ())
        self._token_ids += delta.token_ids
        if delta.logprobs is not None and self._logprobs is not None:
            self._logprobs += delta.logprobs
        # what only one of them says stays said
        kept = {name: getattr(last, name) for name in Delta.__struct_fields__ if getattr(delta, name) is None}
        cached = max(last.num_cached_tokens, delta.num_cached_tokens)
        self._last = msgspec.structs.replace(delta, **{**kept, "num_cached_tokens": cached})

    def delta(self) -> Delta:
        if self._token_ids is None:
            return self._last
        return msgspec.structs.replace(self._last, token_ids=self._token_ids, logprobs=self._logprobs or None)


def merge_stats(earlier: StepStats, later: StepStats) -> StepStats:
    """Two steps as one: amounts are summed, lists put together, what else is no number is the later one's."""
    merged = {}
    for name in StepStats.__struct_fields__:
        old, new = getattr(earlier, name), getattr(later, name)
        is_amount = isinstance(new, int | float) and isinstance(old, int | float) and name not in _GAUGES
        merged[name] = old + new if is_amount else new
    shares = None
    if earlier.shares is not None and later.shares is not None:
        shares = earlier.shares + later.shares
    merged["shares"] = shares if shares is None or len(shares) <= _MAX_DETAILS else None
    merged["block_lives"] = [*(earlier.block_lives or ()), *(later.block_lives or ())][:_MAX_DETAILS] or None
    return StepStats(**merged)


def flush_all(outboxes: Iterable[Outbox]) -> bool:
    """Whether nothing is left in any of them."""
    unsent = [outbox for outbox in outboxes if not (outbox.is_empty or outbox.flush())]
    return not unsent
