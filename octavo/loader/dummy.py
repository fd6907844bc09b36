"""Random weights for a model that is a configuration alone (load_format="dummy")."""

from __future__ import annotations

import hashlib

import torch


def dummy_tensor(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    seed: int = 0,
    *,
    scale: float = 1e-3,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Uniform in [-scale, scale), made on `device`. The same name, seed, shape, dtype and kind of device give the same
    values, in whatever order tensors are made. Integer dtypes get values of their whole range."""
    generator = torch.Generator(device=device)
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    generator.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    if dtype.is_floating_point:
        # 8-bit floats have no uniform_ of their own.
        drawn = torch.empty(shape, dtype=dtype if dtype.itemsize > 1 else torch.float32, device=device)
        return drawn.uniform_(-scale, scale, generator=generator).to(dtype)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator, device=device, dtype=torch.uint8).to(dtype)
    limits = torch.iinfo(dtype)
    return torch.randint(limits.min, limits.max, shape, generator=generator, device=device, dtype=dtype)
