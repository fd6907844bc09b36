"""One rank: one device with its model, its cache and its runner."""

from __future__ import annotations

import json
import logging
from contextlib import suppress

import torch

from octavo.cache.groups import CacheGroup, SlabPlan, group_layers, plan_slabs
from octavo.config.engine_config import EngineConfig
from octavo.layers.build import Finalized
from octavo.ops.ahead import Rehearsal
from octavo.ops.device import recover
from octavo.ops.threads import use_threads
from octavo.platforms.platform import Platform
from octavo.runner.finish import SampleFinish
from octavo.runner.graphs import EagerGraphs
from octavo.runner.model_runner import ModelRunner
from octavo.runner.row_table import RowTable
from octavo.telemetry.phases import Phases
from octavo.worker.assemble import (
    build_extensions,
    build_sampler,
    build_steps,
    choose_buckets,
    load_weights,
    make_model,
)
from octavo.worker.explain import explain_groups
from octavo.worker.memory import MemoryPlan, plan_memory
from octavo.worker.paged_cache import PagedCache
from octavo.worker.rehearsal import rehearse
from octavo.worker.step_memory import measure_step

logger = logging.getLogger(__name__)


class Worker:
    """Construction does it all: load, measure, allocate. Raises CheckpointError, ConfigurationError, OutOfMemory."""

    def __init__(self, config: EngineConfig, platform: Platform, phases: Phases | None = None) -> None:
        self.phases = phases = phases or Phases()
        use_threads(config.machine.threads, platform.cpus)
        self.device = torch.device(platform.device)
        self.model = make_model(config, platform, self.device)
        phases.end("model")
        self.groups: tuple[CacheGroup, ...] = group_layers(self.model.cache_specs())
        self.slabs: SlabPlan = plan_slabs(tuple(group.block_bytes for group in self.groups))
        self._config, self._platform = config, platform
        # before the weights, which then load while kernels compile; where layers make something of them, after
        needs_weights = any(isinstance(module, Finalized) for module in self.model.modules())
        rehearsal = None if needs_weights else self._rehearse()
        phases.end("rehearsal")
        load_weights(config, self.model, self.device)
        phases.end("weights")
        if needs_weights:
            rehearsal = self._rehearse()
            phases.end("rehearsal")
        weight_bytes = sum(p.numel() * p.element_size() for p in self.model.parameters())
        if rehearsal is not None:
            rehearsal.wait()
            phases.end("waiting for kernels")
        step_bytes = measure_step(
            self.model, self.groups, self.slabs, config.scheduler, self.device, platform.graphs == "captured"
        )
        phases.end("largest step")
        if rehearsal is not None:
            rehearsal.wait_beside()
            phases.end("waiting for kernels")
        self.memory: MemoryPlan = plan_memory(config, platform, self.groups, self.slabs, weight_bytes, step_bytes)
        self.cache = PagedCache(
            self.groups, self.slabs, self.memory.num_slabs, self.device, by_layer=platform.cache_by_layer
        )
        self.cache.bind(self.model)
        self.runner = self._make_runner(self.cache)
        self.buckets = choose_buckets(config, platform, self.model)
        phases.end("cache")
        logger.info(
            "%s: weights %.2f GiB; cache %.2f GiB, %s blocks of %d tokens (%s)",
            config.model.checkpoint.name,
            weight_bytes / (1 << 30),
            self.cache.num_bytes / (1 << 30),
            " + ".join(str((self.memory.num_slabs - 1) * per_slab) for per_slab in self.slabs.blocks_per_slab),
            self.groups[0].tokens,
            self.memory.why,
        )
        for reason in explain_groups(self.groups, self.memory.num_slabs, self.slabs, config.scheduler.max_num_seqs):
            logger.info("%s: %s; %s", reason.option, reason.value, reason.why)

    def _make_runner(self, cache: PagedCache, has_graphs: bool = True) -> ModelRunner:
        """Of the model, whose layers `cache` is bound to."""
        scheduler = self._config.scheduler
        max_rows, max_tokens = scheduler.max_num_seqs, scheduler.max_model_len
        widths = [group.retention.table_width(max_tokens, group.tokens) for group in self.groups]
        table = RowTable(max_rows, max_tokens, widths, self.device)
        sampler = build_sampler(self._config, self.model.vocab_size, table, is_rehearsal=not has_graphs)
        batches, graphs = build_steps(self._config, self._platform, self.model, table, self.groups[0].tokens)
        return ModelRunner(
            self.model,
            table,
            SampleFinish(self.model, table, sampler, self._config.sampling.logprobs_mode),
            build_extensions(cache, self.model, table),
            batches,
            graphs if has_graphs else EagerGraphs(),
            scrub=cache.scrub,
        )

    def _rehearse(self) -> Rehearsal | None:
        model = self._config.model
        fields = json.dumps(model.checkpoint.config, sort_keys=True, default=str)
        what = repr((self._platform.description, fields, model.dtype, model.attention_backend, self.groups))
        return rehearse(self._config, self.device, self._rehearsal_runner, what)

    def _rehearsal_runner(self) -> ModelRunner:
        """On a cache of next to nothing."""
        cache = PagedCache(self.groups, self.slabs, 2, self.device)
        cache.bind(self.model)
        return self._make_runner(cache, has_graphs=False)

    def recover(self) -> None:
        """After a failed step: rows are forgotten, memory that nobody uses is given back. Raises what the device raises
        if it is lost."""
        self.runner.reset()
        recover(self.device)

    def release(self) -> None:
        """Gives the memory of the cache and of the weights back. May be called again."""
        self.runner.release()
        self.cache.release(self.model)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.new_empty(0)
        with suppress(RuntimeError):  # a device that was lost has nothing to give
            recover(self.device)
