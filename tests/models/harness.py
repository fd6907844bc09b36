"""Drives a model as a worker would, without one: a paged cache in one flat buffer, block tables, steps.

Blocks are taken in shuffled order, and bytes that no live token owns are 0xff, which every floating dtype reads as NaN:
whatever reads what it must not see spoils its result. (`free_byte=0` is for kernels that multiply what they masked by
zero.) A group that keeps a state has one block a row.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from octavo.attention.backend import GroupStep, StepContext
from octavo.cache.retention import KeepLatest
from octavo.cache.spec import CacheSpec, round_up
from octavo.layers.build import BuildContext
from octavo.layers.stack import CausalLM
from octavo.models import registry

BLOCK_SIZE = 16


@dataclass
class TensorEntry:
    """A checkpoint's tensor that is in memory already."""

    name: str
    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def nbytes(self) -> int:
        return self.tensor.numel() * self.tensor.element_size()

    def read(self) -> torch.Tensor:
        return self.tensor


def entries_of(folder: Path) -> Iterator[TensorEntry]:
    """Every tensor of the folder's safetensors files."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dictionary)
                yield TensorEntry(name, file.get_tensor(name))


def load_model(folder: Path, max_model_len: int, dtype: torch.dtype = torch.float32) -> CausalLM:
    config = json.loads((folder / "config.json").read_text())
    model = registry.model_class(config["architectures"])(config, BuildContext(dtype, max_model_len))
    model.load(entries_of(folder))
    return model


@dataclass
class Row:
    """A request: its tokens, how many are computed, and its blocks in each group."""

    token_ids: list[int]
    num_computed: int = 0
    blocks: list[list[int]] = field(default_factory=list)


class PagedModel:
    """A model with its cache. Layers of equal specs are one group; each group has its own pages in one buffer:

    | page 0 (null): layer a, layer b | page 1: layer a, layer b | ... | group 1: page 0: ... |
    """

    def __init__(
        self, model: CausalLM, num_blocks: int = 64, seed: int = 0, device: str = "cpu", free_byte: int = 0xFF
    ) -> None:
        self.model, self.rows = model, []
        self.device, self.free_byte = torch.device(device), free_byte
        layers_of: dict[CacheSpec, list[str]] = {}
        for name, spec in model.cache_specs().items():
            layers_of.setdefault(spec, []).append(name)
        self.specs = list(layers_of)
        page_bytes = [round_up(spec.layout.num_bytes, 64) * len(layers) for spec, layers in layers_of.items()]
        buffer = torch.full((sum(page_bytes) * num_blocks,), free_byte, dtype=torch.uint8, device=self.device)
        parts: dict[str, dict[str, torch.Tensor]] = {}
        group_of: dict[str, int] = {}
        self.pages: list[torch.Tensor] = []
        start = 0
        for group, (spec, layers) in enumerate(layers_of.items()):
            pages = buffer[start : start + page_bytes[group] * num_blocks].view(num_blocks, -1)
            self.pages.append(pages)
            start += page_bytes[group] * num_blocks
            for index, name in enumerate(layers):
                first = index * round_up(spec.layout.num_bytes, 64)
                parts[name] = _views(pages, first, spec)
                group_of[name] = group
        model.bind_caches(parts, group_of)
        shuffle = random.Random(seed)
        self.free = [list(range(1, num_blocks)) for _ in self.specs]
        for blocks in self.free:
            shuffle.shuffle(blocks)

    def add(self, token_ids: list[int]) -> int:
        self.rows.append(Row(token_ids, blocks=[[] for _ in self.specs]))
        return len(self.rows) - 1

    def step(self, scheduled: Mapping[int, int], only_last: bool = False) -> dict[int, torch.Tensor]:
        """Computes the next `scheduled[row]` tokens of each row: row -> logits [n, vocab] at those positions. With
        `only_last`, the model is told that nobody looks at any but the last."""
        context, input_ids = self._context(scheduled)
        if only_last:
            context.last_tokens = context.query_start[1:].long() - 1
        with torch.inference_mode():
            self.model.plan(context)
            logits = self.model.logits(self.model(input_ids, context))
        self._release(scheduled)
        return dict(zip(scheduled, logits.split(list(scheduled.values())), strict=True))

    def _context(self, scheduled: Mapping[int, int]) -> tuple[StepContext, torch.Tensor]:
        input_ids: list[int] = []
        positions: list[int] = []
        starts, lengths = [0], []
        for index, count in scheduled.items():
            row = self.rows[index]
            end = row.num_computed + count
            assert end <= len(row.token_ids)
            input_ids += row.token_ids[row.num_computed : end]
            positions += range(row.num_computed, end)
            starts.append(starts[-1] + count)
            lengths.append(end)
            for group, blocks in enumerate(row.blocks):
                needed = 1 if self.keeps_state(group) else -(-end // BLOCK_SIZE)
                while len(blocks) < needed:
                    blocks.append(self.free[group].pop())
        groups = [self._group_step(group, scheduled) for group in range(len(self.specs))]
        context = StepContext(
            positions=torch.tensor(positions, device=self.device),
            query_start=torch.tensor(starts, dtype=torch.int32, device=self.device),
            seq_lens=torch.tensor(lengths, dtype=torch.int32, device=self.device),
            query_lens=list(scheduled.values()),
            max_seq_lens=lengths,
            groups=groups,
            rows=torch.tensor(list(scheduled), device=self.device),
        )
        return context, torch.tensor(input_ids, device=self.device)

    def _group_step(self, group: int, scheduled: Mapping[int, int]) -> GroupStep:
        tables = [self.rows[index].blocks[group] for index in scheduled]
        width = max(map(len, tables)) + 2  # with empty places at the end, as a wider table has
        block_table = torch.zeros(len(tables), width, dtype=torch.int32)
        slots: list[int] = []
        for place, ((index, count), table) in enumerate(zip(scheduled.items(), tables, strict=True)):
            block_table[place, : len(table)] = torch.tensor(table)
            first = self.rows[index].num_computed
            if self.keeps_state(group):
                slots += [-1 << 40] * count  # not to be used
                continue
            slots += [table[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE for at in range(first, first + count)]
        return GroupStep(block_table.to(self.device), torch.tensor(slots, device=self.device))

    def keeps_state(self, group: int) -> bool:
        return isinstance(self.specs[group].retention, KeepLatest)

    def _release(self, scheduled: Mapping[int, int]) -> None:
        """Gives back what each retention no longer needs; another row may overwrite it."""
        for index, count in scheduled.items():
            row = self.rows[index]
            row.num_computed += count
            for group, spec in enumerate(self.specs):
                if self.keeps_state(group):
                    continue
                for at in range(spec.retention.first_live_block(row.num_computed, BLOCK_SIZE)):
                    block, row.blocks[group][at] = row.blocks[group][at], 0
                    if block:
                        self.pages[group][block] = self.free_byte
                        self.free[group].insert(0, block)


def _views(pages: torch.Tensor, first: int, spec: CacheSpec) -> dict[str, torch.Tensor]:
    views: dict[str, torch.Tensor] = {}
    for part, offset in zip(spec.layout.parts, spec.layout.offsets(), strict=True):
        begin = first + offset
        typed = pages[:, begin : begin + part.num_bytes].view(getattr(torch, part.dtype))
        views[part.name] = typed.unflatten(1, part.shape)
    return views


def randomise(model: Any, seed: int = 0) -> None:
    """Weights such that logits are of order 1 and every parameter matters: none is zero, no norm is one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("A_log"):  # states that fade within a few tokens, and others that last
            value = noise * 1.5 - 2
        elif parameter.dim() == 2:
            value = noise / parameter.shape[1] ** 0.5 if "embed" not in name else noise / 4
        elif "norm" in name:
            value = noise * 0.2 + parameter.data.float().mean().round()
        else:
            value = noise * 0.3
        parameter.data.copy_(value)


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder
