"""How much memory the largest step takes, measured by running one."""

from __future__ import annotations

import torch

from octavo.attention.backend import GroupStep, StepContext
from octavo.cache.groups import CacheGroup, SlabPlan
from octavo.config.engine_config import SchedulerConfig
from octavo.ops.device import PeakMemory, recover
from octavo.runner.model import Model
from octavo.sampling.prompt_logprobs import SLICE_BYTES
from octavo.worker.paged_cache import PagedCache

_SLACK = 1 << 28  # bytes: what libraries allocate when they are first used


@torch.inference_mode()
def measure_step(
    model: Model,
    groups: tuple[CacheGroup, ...],
    slabs: SlabPlan,
    scheduler: SchedulerConfig,
    device: torch.device,
    has_graphs: bool,
) -> int:
    """Bytes at the peak of a step of `max_num_batched_tokens` new tokens and `max_num_seqs` sampled rows, of which
    nothing is written to the cache. 0 where the device shares its memory. Also loads and compiles what a first step
    needs."""
    memory = PeakMemory(device)
    if not memory.is_known:
        return 0
    cache = PagedCache(groups, slabs, 2, device)
    cache.bind(model)
    memory.start()
    num_tokens = scheduler.max_num_batched_tokens
    num_rows = min(scheduler.max_num_seqs, num_tokens)
    counts = [num_tokens // num_rows + (i < num_tokens % num_rows) for i in range(num_rows)]
    lengths = torch.tensor(counts, device=device)
    starts = torch.zeros(num_rows + 1, dtype=torch.int32, device=device)
    starts[1:] = lengths.cumsum(0)
    positions = torch.arange(num_tokens, device=device) - starts[:-1].long().repeat_interleave(lengths)
    width = -(-max(counts) // groups[0].tokens)
    empty = torch.zeros(num_rows, width, dtype=torch.int32, device=device)
    nowhere = torch.full((num_tokens,), -1, device=device)
    step = StepContext(
        positions,
        starts,
        lengths.to(torch.int32),
        counts,
        counts,
        [GroupStep(empty, nowhere) for _ in groups],
        torch.arange(num_rows, device=device),
    )
    model.plan(step)
    hidden = model.forward(torch.zeros(num_tokens, dtype=torch.int64, device=device), step)
    num_logits = max(num_rows, SLICE_BYTES // (4 * model.vocab_size))  # sampled rows, or a slice of scored positions
    logits = model.logits(hidden[:num_logits])
    logits = logits.float() / 2.0  # sampling holds them twice
    peak = memory.stop()
    cache.unbind(model)
    del hidden, logits, cache
    recover(device)
    return _SLACK + peak * (2 if has_graphs else 1)  # graphs keep a pool of their own beside that of eager steps
