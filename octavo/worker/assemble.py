"""Composition root of the device side: config → ops, model, extensions. Features are named here and nowhere below."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from octavo.attention.select import AttentionSelector
from octavo.config.checkpoint import Checkpoint
from octavo.config.engine_config import EngineConfig, ModelConfig
from octavo.config.env import packed_weights_limit
from octavo.config.read_ahead import note_of_last, packed_directory
from octavo.core.buckets import Buckets, ExactSizes
from octavo.layers.build import BuildContext
from octavo.layers.stack import CausalLM
from octavo.loader.dummy import dummy_tensor
from octavo.loader.files import open_weights, weight_files
from octavo.loader.packed_files import PackedFiles, name_of, packed_forms
from octavo.loader.weight_map import WeightMap
from octavo.models.registry import model_class
from octavo.ops import dispatch
from octavo.platforms.platform import Platform
from octavo.quantization.method import LinearMethod, UnquantizedLinear
from octavo.quantization.packed import PackedLinear
from octavo.runner.batch import BatchBuilder, Builder, StaticBatchBuilder
from octavo.runner.extension import BatchExtension
from octavo.runner.graphs import CudaGraphs, EagerGraphs, Graphs
from octavo.runner.row_table import RowTable
from octavo.runner.shared_prefix import SharedPrefix
from octavo.runner.state_copies import StateCopies
from octavo.runner.tapes import TapedGraphs
from octavo.sampling.engine_processors import EngineProcessors
from octavo.sampling.processors import load_classes
from octavo.sampling.sampler import Sampler
from octavo.sampling.token_edits import TokenHistory
from octavo.telemetry.log import progress_bar
from octavo.worker.paged_cache import PagedCache

logger = logging.getLogger(__name__)


def build_model(config: EngineConfig, platform: Platform, device: torch.device) -> CausalLM:
    """The model with its weights."""
    model = make_model(config, platform, device)
    load_weights(config, model, device)
    return model


def make_model(config: EngineConfig, platform: Platform, device: torch.device) -> CausalLM:
    """The model, whose parameters have no values yet."""
    with torch.inference_mode():
        model, _ = _construct(config, platform, device)
    model.prepare()
    return model


def load_weights(config: EngineConfig, model: CausalLM, device: torch.device) -> None:
    model_config = config.model
    with torch.inference_mode():
        if model_config.load_format == "dummy":
            model.load(_DummyWeights(model, model_config.seed, device))
        else:
            with open_weights(model_config.checkpoint) as weights:
                description = f"loading {model_config.checkpoint.name}"
                with (
                    progress_bar(total=weights.total_bytes, description=description, unit="B") as bar,
                    _kept_weights(model_config.checkpoint, model),
                ):
                    model.load(weights, bar.advance)


@contextmanager
def _kept_weights(checkpoint: Checkpoint, model: CausalLM) -> Iterator[None]:
    """Within it, packed weights of an earlier start are in their places; those that were not are kept for a later."""
    parameters, limit = dict(model.named_parameters()), packed_weights_limit()
    if limit == 0 or not packed_forms(parameters):
        yield
        return
    assert checkpoint.path is not None
    files = PackedFiles(packed_directory(), limit, note_of_last(checkpoint.path))
    name = name_of(weight_files(checkpoint), parameters, model.expected_weights())
    num_bytes = files.take(name, parameters)
    if num_bytes:
        logger.info("%d MiB of packed weights are mapped from %s", num_bytes >> 20, files.directory)
    yield
    if not num_bytes:
        files.put(name, parameters)


def build_skeleton(config: EngineConfig, platform: Platform) -> tuple[CausalLM, AttentionSelector]:
    """The model as it would be, without memory or weights, and what chose its attention backends."""
    with torch.inference_mode():
        return _construct(config, platform, torch.device("meta"))


def _construct(config: EngineConfig, platform: Platform, device: torch.device) -> tuple[CausalLM, AttentionSelector]:
    model_config = config.model
    cls = model_class(model_config.checkpoint.config["architectures"])
    kernels = platform.kernels(model_config.batch_invariant)
    dispatch.use(kernels.op_order)
    attention = AttentionSelector(kernels.attention_order, model_config.attention_backend)
    build = BuildContext(
        dtype=getattr(torch, model_config.dtype),
        max_model_len=model_config.max_model_len,
        device=device,
        block_size=config.cache.block_size,
        cache_dtype=config.cache.dtype,
        conv_state_dtype=config.cache.conv_state_dtype,
        ssm_state_dtype=config.cache.ssm_state_dtype,
        attention=attention,
        capability=platform.capability,
        linear_method=_linear_methods(model_config, cls.weights),
    )
    return cls(model_config.checkpoint.config, build), attention


def _linear_methods(config: ModelConfig, names: WeightMap) -> Callable[[str], LinearMethod]:
    """Which method a linear layer has, by the layer's name. Packed where there are kernels for it that are faster than
    torch's: for quantised blocks, and for short numbers."""
    if config.batch_invariant or not dispatch.is_specialised("linear_packed"):
        return lambda name: UnquantizedLinear()
    if config.quantization == "gguf":
        stored = {weight.name: weight.dtype for weight in open_weights(config.checkpoint)}
        return lambda name: PackedLinear([stored[source] for source in names.sources(f"{name}.weight")])
    if config.dtype == "float32":
        return lambda name: UnquantizedLinear()
    return lambda name: PackedLinear()


def build_extensions(cache: PagedCache, model: CausalLM, table: RowTable) -> Sequence[BatchExtension]:
    extensions: list[BatchExtension] = [StateCopies(cache.copy)]
    if model.reads_shared_prefix:
        extensions.append(SharedPrefix(len(table.computed), table.computed.device))
    return extensions


def build_sampler(config: EngineConfig, vocab_size: int, table: RowTable, is_rehearsal: bool = False) -> Sampler:
    """With the engine's own logits processors, which have no part in a rehearsal. Raises ConfigurationError."""
    device, sampling = table.computed.device, config.sampling
    classes = [] if is_rehearsal else load_classes(sampling.logits_processors)
    processors = EngineProcessors(classes, config, device) if classes else None
    history = TokenHistory(table.tokens, table.length)
    return Sampler(config.scheduler.max_num_seqs, vocab_size, device, history, sampling, processors)


def build_steps(
    config: EngineConfig, platform: Platform, model: CausalLM, table: RowTable, block_size: int
) -> tuple[Builder, Graphs]:
    """How a step becomes tensors, and how its forward runs."""
    if not _takes_static_steps(platform, model):
        return BatchBuilder(table, block_size), EagerGraphs()
    most_tokens = config.scheduler.max_num_batched_tokens
    if platform.graphs == "recorded":
        return StaticBatchBuilder(table, block_size, ExactSizes(), most_tokens), TapedGraphs()
    buckets = choose_buckets(config, platform, model)
    assert buckets is not None
    return StaticBatchBuilder(table, block_size, buckets, most_tokens), CudaGraphs(table.computed.device)


def choose_buckets(config: EngineConfig, platform: Platform, model: CausalLM) -> Buckets | None:
    """The sizes that steps are padded to, once caches are bound; None where they are not."""
    if platform.graphs != "captured" or not _takes_static_steps(platform, model):
        return None
    return Buckets(config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens)


def _takes_static_steps(platform: Platform, model: CausalLM) -> bool:
    """Whether steps may lie in buffers that stay, and be padded: it needs cache writes that leave padding out."""
    return platform.graphs != "eager" and model.is_capturable and dispatch.is_specialised("rope_and_write")


class _DummyWeight:
    def __init__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int, device: torch.device) -> None:
        self.name, self.shape = name, shape
        self._dtype, self._seed, self._device = dtype, seed, device

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self._dtype.itemsize

    def read(self) -> torch.Tensor:
        return dummy_tensor(self.name, self.shape, self._dtype, self._seed, device=self._device)


class _DummyWeights:
    """Random values for every tensor a complete checkpoint would have."""

    def __init__(self, model: CausalLM, seed: int, device: torch.device) -> None:
        self._model, self._seed, self._device = model, seed, device

    def __iter__(self) -> Iterator[_DummyWeight]:
        for expected in self._model.expected_weights():
            yield _DummyWeight(expected.name, expected.shape, expected.dtype, self._seed, self._device)
