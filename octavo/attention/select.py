"""Which attention backend serves a layer: the first of the platform's order that can, with every reason why not."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pkgutil import resolve_name

from octavo.attention.backend import AttentionBackend, AttentionQuery
from octavo.errors import ConfigurationError

log = logging.getLogger(__name__)

_known: dict[str, str] = {
    "torch_sdpa": "octavo.attention.torch_sdpa:TorchSdpa",
    "cpu_paged": "octavo.attention.cpu_paged:CpuPaged",
    "triton_paged": "octavo.attention.triton_paged:TritonPaged",
    "flash_triton": "octavo.attention.flash_triton:FlashTriton",
    "fixed_split": "octavo.attention.fixed_split:FixedSplit",
    "triton_fixed_split": "octavo.attention.triton_fixed_split:TritonFixedSplit",
}


def register(name: str, target: str) -> None:
    """Makes known a backend class, as "module:Class", which may live outside the tree."""
    _known[name] = target


@dataclass(frozen=True)
class Choice:
    """The backend that serves a query, and why those before it do not."""

    backend: AttentionBackend
    rejected: dict[str, str]


@dataclass
class AttentionSelector:
    """Answers queries for one model. `order` is the platform's; `wish` is the user's `attention_backend`, if any.

    There is one instance of a backend, whatever the number of layers it serves.
    """

    order: Callable[[AttentionQuery], tuple[str, ...]] = lambda query: ("torch_sdpa",)
    wish: str | None = None
    choices: dict[AttentionQuery, Choice] = field(default_factory=dict)
    num_layers: Counter[AttentionQuery] = field(default_factory=Counter)  # that asked
    _made: dict[str, AttentionBackend | str] = field(default_factory=dict)

    def __call__(self, query: AttentionQuery) -> AttentionBackend:
        self.num_layers[query] += 1
        if query not in self.choices:
            self.choices[query] = self._choose(query)
        return self.choices[query].backend

    def explain(self) -> Iterator[tuple[str, str]]:
        """For each kind of layer that asked: its backend, and why that one."""
        for query, choice in self.choices.items():
            tried = self.order(query) if self.wish is None else (self.wish,)
            which = f"the first of {', '.join(tried)} that can" if len(tried) > 1 else "the only one here"
            reasons = [which if self.wish is None else "as asked"]
            reasons += [f"not {other}: {why}" for other, why in choice.rejected.items()]
            yield choice.backend.name, f"{self.num_layers[query]} layers of {_short(query)}: {'; '.join(reasons)}"

    def _choose(self, query: AttentionQuery) -> Choice:
        if self.wish is not None and self.wish not in _known:
            raise ConfigurationError(f"attention_backend {self.wish!r} is unknown; known: {', '.join(sorted(_known))}")
        rejected: dict[str, str] = {}
        for name in self.order(query) if self.wish is None else (self.wish,):
            backend = self._backend(name)
            reason = backend if isinstance(backend, str) else backend.why_not(query)
            if reason is None and not isinstance(backend, str):
                reasons = "; ".join(f"not {other}: {why}" for other, why in rejected.items())
                log.info("attention: %s for %s%s", name, _short(query), f" ({reasons})" if reasons else "")
                return Choice(backend, rejected)
            rejected[name] = str(reason)
        what = f"attention_backend {self.wish!r} cannot" if self.wish else "no attention backend can"
        reasons = "; ".join(f"{name}: {why}" for name, why in rejected.items()) or "the platform offers none"
        raise ConfigurationError(f"{what} serve {_short(query)}: {reasons}")

    def _backend(self, name: str) -> AttentionBackend | str:
        """The backend, or why there is none."""
        if name not in self._made:
            if name not in _known:
                self._made[name] = "unknown"
            else:
                try:
                    self._made[name] = resolve_name(_known[name])()
                except (ImportError, OSError) as error:
                    self._made[name] = f"cannot be imported: {type(error).__name__}: {error}"
        return self._made[name]


def _short(query: AttentionQuery) -> str:
    parts = [f"{query.num_heads} heads of {query.head_dim}", f"{query.num_kv_heads} of keys", query.dtype]
    if query.cache_dtype != query.dtype:
        parts.append(f"cache {query.cache_dtype}")
    if query.window is not None:
        parts.append(f"window {query.window}")
    if query.soft_cap is not None:
        parts.append(f"soft cap {query.soft_cap}")
    if query.sinks:
        parts.append("sinks")
    return ", ".join(parts)
