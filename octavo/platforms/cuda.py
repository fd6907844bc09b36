"""NVIDIA GPUs. What there is, the driver's own library says: no torch is needed to ask, and no context is made."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from octavo.platforms import cpu
from octavo.platforms.platform import Kernels, Platform

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_LIBRARIES = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")
_LARGE = 64 * 10**9  # bytes: cards for servers

INVARIANT = Kernels(lambda query: ("triton_fixed_split",), ("triton_invariant", "triton", "torch"))


@dataclass(frozen=True)
class Device:
    name: str
    capability: tuple[int, int]
    total_bytes: int


def platform() -> Platform | None:
    """The first GPU that this process may use; None where there is none."""
    driver = load_driver()
    device = None if driver is None else first_device(driver)
    if driver is None or device is None:
        return None
    is_large = device.total_bytes >= _LARGE
    fast = ("bfloat16", "float16", "float32") if device.capability >= (8, 0) else ("float16", "float32")
    return Platform(
        name="cuda",
        description=f"{device.name}, compute capability {device.capability[0]}.{device.capability[1]}",
        device="cuda:0",
        dtypes=("bfloat16", "float16", "float32"),
        fast_dtypes=fast,
        cache_dtypes=("bfloat16", "float16", "float32"),
        capability=device.capability,
        instruction_sets=(),
        attention_order=attention_order,
        op_order=("triton", "torch"),
        graphs="captured",
        collectives="nccl",
        pinned_memory=True,
        streams=True,
        shares_memory=False,
        num_threads=min(8, cpu.num_usable_cores(cpu.read_processor())),
        memory_info=lambda: memory_info(driver, device),
        worker="octavo.worker.worker:Worker",
        before_torch="octavo.attention.flash_children:start_early" if device.capability[0] in (9, 10) else None,
        default_options={
            "max_num_batched_tokens": 8192 if is_large else 2048,
            "max_num_seqs": 1024 if is_large else 256,
            "gpu_memory_utilization": 0.92,
        },
        invariant=INVARIANT,
    )


def attention_order(query: Any) -> tuple[str, ...]:
    return ("flash_triton", "triton_paged", "torch_sdpa")


def load_driver() -> Any | None:
    """libcuda, initialised; None where there is none, or no device."""
    for name in _LIBRARIES:
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        return driver if driver.cuInit(0) == 0 else None
    return None


def first_device(driver: Any) -> Device | None:
    """Of those that CUDA_VISIBLE_DEVICES leaves."""
    count, handle = ctypes.c_int(), ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value or driver.cuDeviceGet(ctypes.byref(handle), 0):
        return None
    name, total = ctypes.create_string_buffer(256), ctypes.c_size_t()
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
        numbers.append(value.value)
    driver.cuDeviceGetName(name, len(name), handle)
    driver.cuDeviceTotalMem_v2(ctypes.byref(total), handle)
    return Device(name.value.decode(errors="replace"), (numbers[0], numbers[1]), total.value)


def memory_info(driver: Any, device: Device) -> tuple[int, int]:
    """(free, total) bytes. Without a context on this thread nobody can tell what is free: then all of it."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)):
        return device.total_bytes, device.total_bytes
    return free.value, total.value
