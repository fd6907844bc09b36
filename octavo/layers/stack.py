"""The shell of a decoder-only model: everything but its block. A model file gives fields, block and names.

The residual stream travels as two tensors, `hidden` (what the last sublayer added) and `residual` (the sum before it),
so that each norm is one fused addition and normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from octavo.attention.backend import GroupBackend, StepContext
from octavo.cache.spec import CacheSpec
from octavo.layers.attention import SelfAttention
from octavo.layers.build import BuildContext, Finalized
from octavo.layers.embedding import Embedding, OutputHead, TiedHead
from octavo.layers.fields import StackFields
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.loader.assign import ExpectedWeight, WeightSource, assign, expected_weights
from octavo.loader.weight_map import WeightMap


class DecoderBlock(nn.Module):
    """One layer, with a norm before each sublayer. Another wiring overrides `mix` and `feed`, or `forward`."""

    attn: SelfAttention
    mlp: GatedMLP
    attn_norm: RMSNorm
    mlp_norm: RMSNorm

    def forward(
        self, hidden: torch.Tensor, residual: torch.Tensor | None, step: StepContext
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both [T, hidden_size]; the first block has no residual yet. The sum of both results is the block's output."""
        return self.feed(*self.mix(hidden, residual, step))

    def mix(
        self, hidden: torch.Tensor, residual: torch.Tensor | None, step: StepContext
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What brings tokens together: attention. Its result may be of the step's `ends` alone, where there are any."""
        hidden, residual = self.attn_norm.add(hidden, residual)
        return self.attn(hidden, step), residual

    def feed(self, hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is done to each token alone."""
        hidden, residual = self.mlp_norm.add(hidden, residual)
        return self.mlp(hidden), residual


BlockOf = Callable[[Any, int, BuildContext], DecoderBlock]  # (fields, layer, build): a class or a function of the layer


class DecoderStack(nn.Module):
    """Embedding, blocks, final norm."""

    def __init__(self, build: BuildContext, fields: StackFields, block: BlockOf, norm: type[RMSNorm]) -> None:
        super().__init__()
        self.embed = Embedding(build.at("embed"), fields.vocab_size, fields.hidden_size, fields.embed_scale)
        self.layers = nn.ModuleList(
            block(fields, layer, build.at(f"layers.{layer}")) for layer in range(fields.num_layers)
        )
        self.norm = norm(build, fields.hidden_size, fields.norm_eps)
        self._blocks: tuple[Any, ...] = tuple(self.layers)  # indexing a ModuleList costs more than a small block's norm
        self._has_parts = type(self._blocks[-1]).forward is DecoderBlock.forward

    def forward(self, input_ids: torch.Tensor, step: StepContext) -> torch.Tensor:
        hidden, residual = self.embed(input_ids), None
        for block in self._blocks[:-1]:
            hidden, residual = block(hidden, residual, step)
        last, wanted = self._blocks[-1], step.last_tokens
        if wanted is None or not self._has_parts:
            return self.norm.add(*last(hidden, residual, step))[0]
        # Once the last layer's keys and values are in the cache, nothing needs most tokens any more.
        ends = step.of_last_tokens()
        hidden, residual = last.mix(hidden, residual, replace(step, ends=ends))
        hidden = hidden[wanted if len(hidden) == step.num_tokens else ends.last_tokens]
        hidden, residual = last.feed(hidden, residual[wanted])
        found = self.norm.add(hidden, residual)[0]
        return found.new_zeros(step.num_tokens, found.shape[1]).index_copy_(0, wanted, found)


class CausalLM(nn.Module):
    """A language model over a DecoderStack; satisfies runner/model.py's Model."""

    fields: ClassVar[type[StackFields]]
    block: ClassVar[Any]  # a BlockOf
    weights: ClassVar[WeightMap]
    norm: ClassVar[type[RMSNorm]] = RMSNorm

    def __init__(self, config: Mapping[str, Any], build: BuildContext) -> None:
        super().__init__()
        fields = type(self).fields.read(config)
        self.vocab_size, self.hidden_size = fields.vocab_size, fields.hidden_size
        self.logit_soft_cap = fields.logit_soft_cap
        self.model = DecoderStack(build.at("model"), fields, type(self).block, self.norm)
        self.head: nn.Module = (
            TiedHead(self.model.embed)
            if fields.tie_word_embeddings
            else OutputHead(build.at("head"), fields.hidden_size, fields.vocab_size)
        )
        self.stateful = build.stateful
        self._backends: dict[int, GroupBackend] = {}
        self._names = self.weights.extend(ignore=("lm_head",)) if fields.tie_word_embeddings else self.weights

    def cache_specs(self) -> dict[str, CacheSpec]:
        return {name: layer.cache_spec for name, layer in self.stateful.items()}

    def bind_caches(self, parts: Mapping[str, Mapping[str, torch.Tensor]], group_of: Mapping[str, int]) -> None:
        self._backends = {}
        for name, layer in self.stateful.items():
            group = group_of[name]
            layer.bind(parts[name], group)
            assert self._backends.setdefault(group, layer.backend) is layer.backend, f"two backends in group {group}"

    def prepare(self) -> None:
        """Has backends begin to load what they need."""
        for backend in {id(layer.backend): layer.backend for layer in self.stateful.values()}.values():
            backend.prepare()

    def plan(self, step: StepContext) -> None:
        for group, backend in self._backends.items():
            step.groups[group].plan = backend.plan(step, group)

    @property
    def is_capturable(self) -> bool:
        """Whether every backend takes padded steps. Known once caches are bound."""
        return all(backend.is_capturable for backend in self._backends.values())

    @property
    def reads_shared_prefix(self) -> bool:
        """Whether any backend does. Known once caches are bound."""
        return any(backend.reads_shared_prefix for backend in self._backends.values())

    def graph_key(self, step: StepContext) -> Hashable:
        return tuple(backend.graph_key(step) for backend in self._backends.values())

    def forward(self, input_ids: torch.Tensor, step: StepContext) -> torch.Tensor:
        return self.model(input_ids, step)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.head(hidden)
        if self.logit_soft_cap is not None:
            logits = logits.float().div_(self.logit_soft_cap).tanh_().mul_(self.logit_soft_cap)
        return logits

    def expected_weights(self) -> Iterator[ExpectedWeight]:
        """Every tensor that `load` needs, by its name in the checkpoint."""
        return expected_weights(dict(self.named_parameters()), self._names)

    def load(self, weights: Iterable[WeightSource], progress: Callable[[int], None] | None = None) -> None:
        """Fills every parameter from `weights`, each read once; WeightError says what is missing, misshapen or too
        much. `progress` is told the bytes of each tensor read."""
        assign(dict(self.named_parameters()), self._names, weights, progress)
        for module in self.modules():
            if isinstance(module, Finalized):
                module.finalize()
