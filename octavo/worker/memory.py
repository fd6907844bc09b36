"""How much memory the cache gets, and whether that is enough."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.cache.groups import CacheGroup, SlabPlan
from octavo.cache.retention import KeepLatest
from octavo.config.engine_config import EngineConfig
from octavo.errors import OutOfMemory
from octavo.platforms.platform import Platform

GIB = 1 << 30


@dataclass(frozen=True)
class MemoryPlan:
    """`num_slabs` counts the null slab. `why` is for people."""

    num_slabs: int
    why: str


def plan_memory(
    config: EngineConfig,
    platform: Platform,
    groups: tuple[CacheGroup, ...],
    slabs: SlabPlan,
    weight_bytes: int,
    step_bytes: int = 0,
) -> MemoryPlan:
    """What an explicit size, or the share of what is free now that the weights are loaded, holds; never more than
    `max_num_seqs` requests of `max_model_len` can use. `step_bytes` are left for the largest step and for graphs, on a
    device with memory of its own. OutOfMemory if not even one step's tokens fit."""
    scheduler, cache = config.scheduler, config.cache
    free, total = platform.memory_info()
    state = f"{_gib(free)} of {_gib(total)} free, weights {_gib(weight_bytes)}"
    useful = (
        1 + _slabs_of(groups, slabs, scheduler.max_model_len, scheduler.max_num_batched_tokens) * scheduler.max_num_seqs
    )
    if cache.num_blocks_override is not None:
        return MemoryPlan(cache.num_blocks_override + 1, f"{cache.num_blocks_override} blocks as asked")
    if cache.memory_bytes is not None:
        if cache.memory_bytes > free:
            raise OutOfMemory(f"kv_cache_memory_bytes asks for {_gib(cache.memory_bytes)}, but there is {state}")
        num_slabs, why = slabs.num_slabs(cache.memory_bytes), f"{_gib(cache.memory_bytes)} as asked"
    else:
        budget = int(free * cache.memory_fraction)
        if not platform.shares_memory:  # the fraction is of the whole device, weights included
            budget = int(total * cache.memory_fraction) - (total - free) - step_bytes
            state += f", {_gib(step_bytes)} for steps"
        num_slabs = slabs.num_slabs(max(0, budget))
        of = "what is free" if platform.shares_memory else "the device"
        why = f"{cache.memory_fraction:.0%} of {of} ({state})"
        holds_copies = any(
            isinstance(group.retention, KeepLatest) for group in groups
        )  # of which more is always useful
        if num_slabs > useful and not holds_copies:
            num_slabs = useful
            why = f"all that {scheduler.max_num_seqs} requests of {scheduler.max_model_len} tokens can use ({state})"
    least = 1 + _slabs_of(groups, slabs, 2 * groups[0].tokens, groups[0].tokens)
    if num_slabs < least:
        raise OutOfMemory(
            f"the cache would have {_gib(num_slabs * slabs.slab_bytes)} ({why}), but needs at least "
            f"{_gib(least * slabs.slab_bytes)} for {2 * groups[0].tokens} tokens: choose a smaller model or dtype, or "
            "raise kv_cache_memory_bytes"
        )
    return MemoryPlan(num_slabs, why)


def _slabs_of(groups: tuple[CacheGroup, ...], slabs: SlabPlan, num_tokens: int, chunk: int) -> int:
    """Slabs that one request of `num_tokens` holds at its peak."""
    return sum(
        -(-group.retention.peak_blocks(num_tokens, group.tokens, chunk) // per_slab)
        for group, per_slab in zip(groups, slabs.blocks_per_slab, strict=True)
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB"
