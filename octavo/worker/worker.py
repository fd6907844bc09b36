"""One rank: one device with its model, its cache and its runner."""

from __future__ import annotations

import logging
import time

import torch

from octavo.cache.groups import CacheGroup, SlabPlan, group_layers, plan_slabs
from octavo.config.engine_config import EngineConfig
from octavo.ops.device import recover
from octavo.platforms.platform import Platform
from octavo.runner.finish import SampleFinish
from octavo.runner.model_runner import ModelRunner
from octavo.runner.row_table import RowTable
from octavo.worker.assemble import build_extensions, build_model, build_sampler, build_steps
from octavo.worker.explain import explain_groups
from octavo.worker.memory import MemoryPlan, plan_memory
from octavo.worker.paged_cache import PagedCache
from octavo.worker.step_memory import measure_step

logger = logging.getLogger(__name__)


class Worker:
    """Construction does it all: load, measure, allocate. Raises CheckpointError, ConfigurationError, OutOfMemory."""

    def __init__(self, config: EngineConfig, platform: Platform) -> None:
        started = time.perf_counter()
        torch.set_num_threads(config.machine.threads)
        self.device = torch.device(platform.device)
        self.model = build_model(config, platform, self.device)
        weight_bytes = sum(p.numel() * p.element_size() for p in self.model.parameters())
        loaded = time.perf_counter()
        self.groups: tuple[CacheGroup, ...] = group_layers(self.model.cache_specs())
        self.slabs: SlabPlan = plan_slabs(tuple(group.block_bytes for group in self.groups))
        step_bytes = measure_step(
            self.model, self.groups, self.slabs, config.scheduler, self.device, platform.graphs == "captured"
        )
        self.memory: MemoryPlan = plan_memory(config, platform, self.groups, self.slabs, weight_bytes, step_bytes)
        self.cache = PagedCache(self.groups, self.slabs, self.memory.num_slabs, self.device)
        self.cache.bind(self.model)
        max_rows, max_tokens = config.scheduler.max_num_seqs, config.scheduler.max_model_len
        widths = [group.retention.table_width(max_tokens, group.tokens) for group in self.groups]
        table = RowTable(max_rows, max_tokens, widths, self.device)
        self.runner = ModelRunner(
            self.model,
            table,
            SampleFinish(self.model, table, build_sampler(config, self.model.vocab_size, table)),
            build_extensions(self.cache),
            *build_steps(config, platform, self.model, table, self.groups[0].tokens),
            scrub=self.cache.scrub,
        )
        logger.info(
            "%s: weights %.2f GiB in %.1f s; cache %.2f GiB, %s blocks of %d tokens (%s)",
            config.model.checkpoint.name,
            weight_bytes / (1 << 30),
            loaded - started,
            self.cache.num_bytes / (1 << 30),
            " + ".join(str((self.memory.num_slabs - 1) * per_slab) for per_slab in self.slabs.blocks_per_slab),
            self.groups[0].tokens,
            self.memory.why,
        )
        for reason in explain_groups(self.groups, self.memory.num_slabs, self.slabs, max_rows):
            logger.info("%s: %s; %s", reason.option, reason.value, reason.why)

    def recover(self) -> None:
        """After a failed step: rows are forgotten, memory that nobody uses is given back. Raises what the device raises
        if it is lost."""
        self.runner.reset()
        recover(self.device)

    def release(self) -> None:
        """Gives the memory back. May be called again."""
        self.runner.reset()
        self.cache.unbind(self.model)
        self.cache = PagedCache((), self.slabs, 0, self.device)
