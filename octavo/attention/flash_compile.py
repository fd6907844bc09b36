"""FlashAttention-4 compiled in processes of their own, at a first start.

Its compiler is Python for seconds, which one process does in turn with Triton's front end and with the rehearsal. A
child (flash_child.py) makes the call that this process is about to make, on zeros, ends, and leaves the kernel in
FlashAttention-4's folder, where this process then finds it as a second start does:

    parent                                        child
    start                                         imports torch and FlashAttention-4: seconds, no device yet
    begin(name, arguments) -> stdin, a line ->    the call, on zeros
    wait(name)             <- exit status 0 <-    the kernel is on the disk

FlashAttention-4 names a kernel by what it was made of: its own source and its libraries' versions, the device's
architecture, dtypes, head sizes, heads of queries for one of keys, the mask, which arguments there are, and tiles
chosen by these and by the number of query tokens. Not by strides, nor by the number of pages, of which a child gets
FEW_PAGES. If the two should not agree on a name, this process compiles the kernel itself.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from octavo.attention.flash_children import Child, can_help, take_early

log = logging.getLogger(__name__)

SECONDS = 120.0  # a call may take
FEW_PAGES = 2
_ALIGNMENT = 16  # bytes: FlashAttention-4 copies what begins elsewhere, and a layout that it cannot load


@dataclass(frozen=True)
class TensorShape:
    """All that matters of a tensor where there is nothing to do."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    offset: int  # elements from an aligned address

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorShape:
        offset = tensor.data_ptr() % _ALIGNMENT // tensor.element_size()
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, offset)

    def zeros(self) -> torch.Tensor:
        """A tensor like that one, of zeros."""
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        memory = torch.zeros(self.offset + last + 1, dtype=self.dtype, device=self.device)
        return memory.as_strided(self.shape, self.stride, self.offset)


def describe(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of a call of `flash_attn_varlen_func`, with a TensorShape for each tensor."""
    found = {name: TensorShape.of(it) if isinstance(it, torch.Tensor) else it for name, it in arguments.items()}
    for name in ("k", "v"):
        pages = found[name]
        found[name] = replace(pages, shape=(min(FEW_PAGES, pages.shape[0]), *pages.shape[1:]))
    return found


def encode(described: Mapping[str, Any]) -> bytes:
    """As a line of JSON: of plain arguments, numbers, None and pairs of them."""

    def plain(it: Any) -> Any:
        if not isinstance(it, TensorShape):
            return it
        dtype = str(it.dtype).removeprefix("torch.")
        return {"shape": it.shape, "stride": it.stride, "dtype": dtype, "device": str(it.device), "offset": it.offset}

    return json.dumps({name: plain(it) for name, it in described.items()}).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    def whole(it: Any) -> Any:
        if isinstance(it, list):
            return tuple(it)
        if not isinstance(it, dict):
            return it
        dtype, device = getattr(torch, it["dtype"]), torch.device(it["device"])
        return TensorShape(tuple(it["shape"]), tuple(it["stride"]), dtype, device, it["offset"])

    return {name: whole(it) for name, it in json.loads(line).items()}


def rebuild(described: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments again, where all lengths are zero."""
    return {name: it.zeros() if isinstance(it, TensorShape) else it for name, it in described.items()}


class FlashCompilers:
    """Does nothing until `start` has been called. Each name has a child of its own. `wait` may be called on any thread,
    the others on one."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._idle: list[Child] = []
        self._busy: dict[Hashable, Child] = {}
        self._is_started = False

    def start(self) -> None:
        """May be called again."""
        if not self._is_started and can_help():
            self._is_started = True
            self._idle = take_early()

    def begin(self, name: Hashable, arguments: Mapping[str, Any]) -> None:
        """Has a child compile what this call needs. Once for each name."""
        if self._is_started and name not in self._busy:
            child = self._busy[name] = self._idle.pop() if self._idle else Child()
            child.send(encode(describe(arguments)))

    def wait(self, name: Hashable) -> bool:
        """Until the child of that name has ended: whether it has compiled it. False if there is none."""
        child = self._busy.get(name)
        if child is None:
            return False
        reason = child.wait(self._seconds)
        if reason is not None:
            log.warning("%s was not compiled by a process of its own: %s", name, reason)
        return reason is None

    def close(self) -> None:
        """Ends children that were given nothing to do."""
        while self._idle:
            self._idle.pop().end()
