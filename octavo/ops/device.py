"""What differs between devices beside kernels: uploads from pinned memory, results on a stream beside the step's, what
memory a step takes, how a device is put right after a failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch


def upload_array(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """A tensor of the same dtype on `device`; the copy queues behind what runs there."""
    return _send(torch.from_numpy(values), device)


def upload(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The same for numbers."""
    return _send(torch.tensor(values, dtype=dtype), device)


def _send(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


def pins_memory(device: torch.device) -> bool:
    """Do uploads start from pinned memory?"""
    return device.type != "cpu"


def same_stream(device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """For another thread: within this, what it submits queues behind what the caller has submitted."""
    if device.type == "cpu":
        return nullcontext
    stream = torch.cuda.current_stream(device)
    return lambda: torch.cuda.stream(stream)


def recover(device: torch.device) -> None:
    """After a failure: waits for what still runs and gives unused memory back. Raises what the device raises if it is
    lost."""
    if device.type != "cpu":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Said by torch's allocator, by the driver, or by a vendor's library of its own allocations."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "ALLOC_FAILED" in text)


class PeakMemory:
    """Bytes that a device of its own memory had to hand out since `start`, at the most; 0 for one that shares it."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._before = device, 0
        self.is_known = device.type != "cpu"

    def start(self) -> None:
        if self.is_known:
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)

    def stop(self) -> int:
        if not self.is_known:
            return 0
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - self._before


class HostCopies:
    """Tensors on their way to the host. On a CPU they are there."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, *tensors: torch.Tensor) -> Arrival:
        """What is computed on the current stream by now. The tensors may be overwritten only after `wait`."""
        if self._stream is None:
            return Arrival(tensors, None)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            copies = []
            for tensor in tensors:
                copies.append(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True))
                copies[-1].copy_(tensor, non_blocking=True)
                tensor.record_stream(self._stream)
            done = torch.cuda.Event()
            done.record(self._stream)
        return Arrival(tuple(copies), done)


class Arrival:
    def __init__(self, tensors: tuple[torch.Tensor, ...], done: Any) -> None:
        self._tensors, self._done = tensors, done

    def wait(self) -> tuple[torch.Tensor, ...]:
        """The tensors on the host."""
        if self._done is not None:
            self._done.synchronize()
        return self._tensors
