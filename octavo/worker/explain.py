"""What a model will need and get on this device, told without loading it: its layers are made without memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from octavo.cache.groups import CacheGroup, SlabPlan, group_layers, plan_slabs
from octavo.cache.retention import KeepLatest
from octavo.config.engine_config import EngineConfig
from octavo.config.resolve import Reason
from octavo.errors import OutOfMemory
from octavo.ops import dispatch
from octavo.ops.threads import describe
from octavo.platforms.platform import Platform
from octavo.worker.assemble import build_skeleton
from octavo.worker.memory import plan_memory

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def explain_model(config: EngineConfig, platform: Platform) -> list[Reason]:
    """Weights, attention backends, what each kind of layer keeps, and the cache's size as far as it can be known before
    the weights are there. Raises CheckpointError, ConfigurationError."""
    model, attention = build_skeleton(config, platform)
    weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    held = "GGUF blocks as stored" if config.model.quantization == "gguf" else config.model.dtype
    rows = [Reason("weights", size(weight_bytes), f"{held}, as they will lie in memory")]
    if platform.name == "cpu":
        cores = ", ".join(map(str, platform.cpus[: config.machine.threads]))
        rows.append(Reason("cores", cores, describe(config.machine.threads, platform.cpus)))
        kernels = sorted(op for op, implementation in dispatch.chosen().items() if implementation == "cpu")
        absent = "not compiled" if "cpu" in dispatch.absent() else "none"  # the log says what that costs
        rows.append(Reason("kernels", "cpu" if kernels else "torch", ", ".join(kernels) or absent))
    rows += [Reason("attention_backend", name, why) for name, why in attention.explain()]
    groups = group_layers(model.cache_specs())
    slabs = plan_slabs(tuple(group.block_bytes for group in groups))
    free, total = platform.memory_info()
    loaded = replace(platform, memory_info=lambda: (max(0, free - weight_bytes), total))
    try:
        plan = plan_memory(config, loaded, groups, slabs, weight_bytes)
    except OutOfMemory as error:
        cache = Reason("cache", "does not fit", str(error))
        return [*rows, *explain_groups(groups, 0, slabs, config.scheduler.max_num_seqs), cache]
    rows += explain_groups(groups, plan.num_slabs, slabs, config.scheduler.max_num_seqs)
    caveat = "" if platform.shares_memory else "; less what the largest step is measured to need"
    return [*rows, Reason("cache", size(plan.num_slabs * slabs.slab_bytes), plan.why + caveat)]


def explain_groups(groups: Sequence[CacheGroup], num_slabs: int, slabs: SlabPlan, max_rows: int) -> Iterator[Reason]:
    """What each kind of layer keeps and what that costs. `num_slabs` counts the null slab; 0 if it is not known."""
    shares = []
    for group, per_slab in zip(groups, slabs.blocks_per_slab, strict=True):
        room, layers = (num_slabs - 1) * per_slab, len(group.layers)
        kept = group.retention.describe(group.tokens)
        if isinstance(group.retention, KeepLatest):
            shares.append(f"{per_slab:,} {'state' if per_slab == 1 else 'states'}")
            value = f"{size(group.block_bytes)} a request and a checkpoint"
            why = f"{layers} recurrent layers: {kept}"
            fits = f"room for {room:,}: {max(0, room - max_rows):,} checkpoints beside {min(room, max_rows):,} requests"
        else:
            shares.append(f"{per_slab * group.tokens:,} tokens in blocks of {group.tokens}")
            value = f"{size(group.block_bytes / group.tokens)} a token"
            why = f"{layers} attention layers: {kept}"
            fits = f"room for {room * group.tokens:,} tokens"
        others = ", if nothing else is kept" if len(groups) > 1 else ""
        yield Reason("kept in the cache", value, f"{why}; {fits}{others}" if num_slabs else why)
    yield Reason("slab", size(slabs.slab_bytes), f"what memory is dealt out in: each holds {' or '.join(shares)}")


def size(num_bytes: float) -> str:
    """With three digits and a unit, such as 1.25 MiB."""
    unit = 0
    while num_bytes >= 1000 and unit < len(_UNITS) - 1:
        num_bytes /= 1024
        unit += 1
    return f"{num_bytes:.{0 if unit == 0 or num_bytes >= 100 else 1 if num_bytes >= 10 else 2}f} {_UNITS[unit]}"
