"""Composition root of the engine side: config → caps, gates, cache, scheduler, executor. Features are named here."""

from __future__ import annotations

import logging

from octavo.cache.lives import BlockLives
from octavo.cache.manager import CacheManager
from octavo.config.engine_config import EngineConfig
from octavo.core.hooks import TokenCap
from octavo.engine.constraints import Constraints
from octavo.engine.engine_core import EngineCore
from octavo.errors import OutOfMemory
from octavo.executor.inline import InlineExecutor
from octavo.platforms.platform import Platform
from octavo.sampling.request_processors import RequestProcessors
from octavo.scheduler.bucket_cap import BucketCap
from octavo.scheduler.caps import FairShare, LongPrefill, PromptLogprobRows, StateBorders
from octavo.scheduler.scheduler import Scheduler
from octavo.scheduler.shared_prefixes import SharedPrefixes
from octavo.structured.constraint import StructuredOutputs
from octavo.structured.forced import ForcedTokens
from octavo.structured.vocabulary import vocabulary_of
from octavo.telemetry.phases import Phases
from octavo.worker.worker import Worker

logger = logging.getLogger(__name__)


def build_engine(config: EngineConfig, platform: Platform, phases: Phases | None = None) -> EngineCore:
    """Loads the model and makes the core; `phases` go on from what came before. Raises CheckpointError,
    ConfigurationError, OutOfMemory."""
    phases = phases or Phases()
    worker = Worker(config, platform, phases)
    logger.info("start: %s", phases)
    sample = config.machine.block_lives_sample
    cache = CacheManager(
        worker.groups,
        worker.slabs.blocks_per_slab,
        worker.memory.num_slabs,
        max_chunk=config.scheduler.max_num_batched_tokens,
        enable_prefix_caching=config.cache.enable_prefix_caching,
        hash_algorithm=config.cache.hash_algo,
        watermark=config.scheduler.watermark,
        lives=BlockLives(sample) if sample else None,
        annotation_bytes=config.cache.prompt_logprobs_bytes,
    )
    longest = cache.max_tokens(config.scheduler.max_model_len)
    if longest < config.scheduler.max_model_len:
        message = (
            f"the cache ({worker.memory.why}) holds one request of {longest} tokens, not of max_model_len "
            f"{config.scheduler.max_model_len}"
        )
        if not config.model.max_model_len_may_shrink:
            raise OutOfMemory(f"{message}: lower max_model_len to {longest} or raise kv_cache_memory_bytes")
        logger.warning("%s: requests may have %d tokens", message, longest)
    caps: list[TokenCap] = [LongPrefill(config.scheduler.long_prefill_token_threshold), FairShare(cache.block_size)]
    if config.scheduler.enable_chunked_prefill:
        caps.append(PromptLogprobRows())
    if cache.has_states:
        caps.append(StateBorders(cache))
    if worker.buckets is not None and config.scheduler.enable_chunked_prefill:
        caps.append(BucketCap(worker.buckets, cache.block_size))
    structured = StructuredOutputs(lambda: vocabulary_of(config), config.structured, config.machine.threads)
    prefixes = SharedPrefixes(cache) if worker.model.reads_shared_prefix else None
    scheduler = Scheduler(config.scheduler, cache, caps, gates=[structured], shared_prefixes=prefixes)
    forced = ForcedTokens(lambda: vocabulary_of(config), config.model.vocab_size)
    return EngineCore(
        scheduler,
        InlineExecutor(worker),
        config.scheduler.depth,
        longest,
        config.model.seed,
        Constraints([structured, forced]),
        RequestProcessors(config.sampling.request_processors),
        vocab_size=worker.model.vocab_size,
        logprobs_mode=config.sampling.logprobs_mode,
    )
