"""From a checkpoint's tensor names to a model's parameters, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

# What checkpoints carry and no model reads: tables of rotary embeddings, masks.
IGNORED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", "attn.masked_bias")


class Target(NamedTuple):
    """Where a tensor goes: a parameter, and the part of it if it is fused."""

    parameter: str
    part: int | None


@dataclass(frozen=True)
class WeightMap:
    """Names are dotted paths, and every rule speaks of whole components of them.

    rename: checkpoint's path -> ours, wherever it occurs.
    fuse: our fused module -> the checkpoint's modules (already renamed) that its outputs are made of, in order.
    ignore: checkpoint's paths whose tensors are not wanted.
    """

    rename: Mapping[str, str] = field(default_factory=dict)
    fuse: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()

    def extend(
        self,
        rename: Mapping[str, str] | None = None,
        fuse: Mapping[str, tuple[str, ...]] | None = None,
        ignore: tuple[str, ...] = (),
    ) -> WeightMap:
        """The same map with more rules, which win over the old ones of the same name."""
        return WeightMap({**self.rename, **(rename or {})}, {**self.fuse, **(fuse or {})}, self.ignore + ignore)

    def ignores(self, name: str) -> bool:
        dotted = f".{name}."
        return any(f".{path}." in dotted for path in (*IGNORED, *self.ignore))

    def target(self, name: str) -> Target:
        path = _replace(name, self.rename)
        for fused, parts in self.fuse.items():
            parent, _, module = fused.rpartition(".")
            for index, part in enumerate(parts):
                found = _replace(path, {_join(parent, part): _join(parent, module)})
                if found != path:
                    return Target(found, index)
        return Target(path, None)

    def sources(self, parameter: str) -> tuple[str, ...]:
        """The checkpoint's names of what a parameter is made of, part by part."""
        back = {ours: theirs for theirs, ours in self.rename.items()}
        for fused, parts in self.fuse.items():
            parent = fused.rpartition(".")[0]
            if f".{fused}." in f".{parameter}.":
                return tuple(_replace(_replace(parameter, {fused: _join(parent, part)}), back) for part in parts)
        return (_replace(parameter, back),)


def _join(parent: str, module: str) -> str:
    return f"{parent}.{module}" if parent else module


@lru_cache(maxsize=1024)
def _split(rules: tuple[tuple[str, str], ...]) -> list[tuple[list[str], str]]:
    return sorted(((old.split("."), new) for old, new in rules), key=lambda rule: -len(rule[0]))


def _replace(name: str, rules: Mapping[str, str]) -> str:
    """Every rule at most once along the path; what one rule has written is not read by another. Longest match first."""
    if not any(old in name for old in rules):
        return name
    split = _split(tuple(rules.items()))
    components, out, at = name.split("."), [], 0
    while at < len(components):
        for old, new in split:
            if components[at : at + len(old)] == old:
                out.append(new)
                at += len(old)
                break
        else:
            out.append(components[at])
            at += 1
    return ".".join(out)
