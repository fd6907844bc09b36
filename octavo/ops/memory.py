"""Large buffers."""

from __future__ import annotations

import numpy as np
import torch

PAGE_BYTES = 4096


def zeroed_buffer(num_bytes: int, device: torch.device) -> torch.Tensor:
    """[num_bytes] uint8, all zeros, aligned to a page. On a CPU the system hands the pages out when they are first
    written, so a large buffer costs neither time nor memory before it is used."""
    if device.type != "cpu":
        return torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    whole = np.zeros(num_bytes + PAGE_BYTES, dtype=np.uint8)  # calloc: fresh pages are zero already
    start = -whole.ctypes.data % PAGE_BYTES
    return torch.from_numpy(whole[start : start + num_bytes])
