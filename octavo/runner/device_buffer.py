"""Between host and device without waiting: uploads from pinned memory, results on a stream beside the step's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def upload_array(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """A tensor of the same dtype on `device`; the copy queues behind what runs there."""
    host = torch.from_numpy(values)
    if device.type == "cpu":
        return host
    return host.pin_memory().to(device, non_blocking=True)


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
