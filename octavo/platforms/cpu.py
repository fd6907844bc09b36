"""The CPU platform: what the processor can do, and how much of the machine this process may use.

Limits of containers count: cores and memory are those of the control group (Linux cgroup v1 and v2), not the machine's.
"""

from __future__ import annotations

import math
import os
import platform as host
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from octavo.cache.spec import KV_DTYPES
from octavo.config.env import thread_limit
from octavo.platforms.platform import Kernels, Platform

# Flags of /proc/cpuinfo that kernels ask for: x86, then Arm.
INSTRUCTION_SETS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "amx_fp16",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
)

# A sum this large in a cgroup v1 file means "no limit": the largest page-aligned signed 64-bit number, or near it.
_NO_LIMIT = 1 << 60


INVARIANT = Kernels(lambda query: ("fixed_split",), ("invariant", "cpu", "torch"))


@dataclass(frozen=True)
class Processor:
    name: str
    instruction_sets: tuple[str, ...]
    core_of: dict[int, tuple[int, int]]  # logical CPU -> (socket, core); empty where the system does not say


def platform(root: Path = Path("/")) -> Platform:
    """The CPU this process runs on. `root` is where /proc and /sys lie."""
    processor = read_processor(root)
    sets = processor.instruction_sets
    fast = []
    if {"avx512_bf16", "amx_bf16", "bf16"} & set(sets):
        fast.append("bfloat16")
    fast.append("float32")
    if {"avx512_fp16", "amx_fp16"} & set(sets):
        fast.append("float16")
    cpus = usable_cpus(processor, root)
    return Platform(
        name="cpu",
        description=processor.name,
        device="cpu",
        dtypes=("float32", "bfloat16", "float16"),
        fast_dtypes=tuple(fast),
        cache_dtypes=KV_DTYPES,
        capability=None,
        instruction_sets=sets,
        attention_order=_attention_order,
        op_order=("cpu", "torch"),
        cache_by_layer=True,
        graphs="recorded" if has_kernels() else "eager",
        collectives="gloo",
        pinned_memory=False,
        streams=False,
        shares_memory=True,
        num_threads=len(cpus),
        cpus=cpus,
        has_block_kernels=has_kernels(),
        memory_info=lambda: memory_info(root),
        worker="octavo.worker.worker:Worker",
        default_options={"max_num_batched_tokens": 2048, "max_num_seqs": 256, "gpu_memory_utilization": 0.5},
        invariant=INVARIANT,
    )


def _attention_order(query: Any) -> tuple[str, ...]:
    return ("cpu_paged", "torch_sdpa") if has_kernels() else ("torch_sdpa",)


# ---- processor -------------------------------------------------------------------------------------------------------


def read_processor(root: Path = Path("/")) -> Processor:
    """From /proc/cpuinfo; elsewhere the name alone."""
    name, flags, core_of = "", set(), {}
    entry: dict[str, str] = {}
    for line in (*_read(root / "proc/cpuinfo").splitlines(), ""):
        key, colon, value = line.partition(":")
        if colon:
            entry[key.strip()] = value.strip()
            continue
        if "processor" in entry:
            name = name or entry.get("model name", "")
            flags |= set((entry.get("flags") or entry.get("Features") or "").split())
            if "core id" in entry and entry["processor"].isdecimal():
                core_of[int(entry["processor"])] = (int(entry.get("physical id", 0)), int(entry["core id"]))
        entry = {}
    name = name or host.processor() or host.machine()
    return Processor(name, tuple(flag for flag in INSTRUCTION_SETS if flag in flags), core_of)


def usable_cpus(processor: Processor, root: Path = Path("/")) -> tuple[int, ...]:
    """A logical CPU of each physical core that the affinity mask, the control group's quota and OMP_NUM_THREADS leave
    to this process, at least one. Two threads of one core share its arithmetic units, so the second adds nothing."""
    first_of_core: dict[tuple[int, int], int] = {}
    for cpu in sorted(affinity()):
        first_of_core.setdefault(processor.core_of.get(cpu, (-1, cpu)), cpu)
    cpus = tuple(first_of_core.values())
    limits = [len(cpus), *(limit for limit in (thread_limit(),) if limit is not None)]
    quota = cpu_quota(root)
    if quota is not None:
        limits.append(math.ceil(quota))
    return cpus[: max(1, min(limits))]


def num_usable_cores(processor: Processor, root: Path = Path("/")) -> int:
    """How many those are."""
    return len(usable_cpus(processor, root))


def has_kernels() -> bool:
    """Were octavo's own compiled?"""
    try:
        import_module("octavo._cpu")
    except ImportError:
        return False
    return True


def affinity() -> set[int]:
    """Logical CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


# ---- control groups --------------------------------------------------------------------------------------------------


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that the control group grants, None where it sets no limit."""
    quotas = []
    for folder in _groups(root, "cpu"):
        words = _read(folder / "cpu.max").split()
        if len(words) != 2:
            words = [_read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()]
        if all(word.isdecimal() for word in words) and int(words[0]) > 0 and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that the control group grants, None where it sets no limit."""
    limits = [limit for folder in _groups(root, "memory") if (limit := _group_limit(folder)) is not None]
    return min(limits, default=None)


def memory_info(root: Path = Path("/")) -> tuple[int, int]:
    """(free, total) bytes: the machine's, or the control group's if that is less. Cached file pages count as free."""
    machine = psutil.virtual_memory()
    free, total = machine.available, machine.total
    for folder in _groups(root, "memory"):
        limit = _group_limit(folder)
        if limit is None:
            continue
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        statistics = dict(line.split()[:2] for line in _read(folder / "memory.stat").splitlines() if " " in line)
        cached = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
        total = min(total, limit)
        free = min(free, max(0, limit - max(0, used - cached)))
    return free, total


def _group_limit(folder: Path) -> int | None:
    limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
    return limit if limit is not None and limit < _NO_LIMIT else None


def _groups(root: Path, controller: str) -> list[Path]:
    """This process's control group of `controller` and all above it: each may set a limit, the lowest counts."""
    mount = root / "sys/fs/cgroup"
    folders: list[Path] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and controllers == "":
            base = mount
        elif controller in controllers.split(","):
            base = next((mount / name for name in (controllers, controller) if (mount / name).is_dir()), mount)
        else:
            continue
        # Inside a container the path may be the host's, which does not exist here; then the mount itself is ours.
        folder = base / path.strip().lstrip("/")
        while folder != base:
            folders.append(folder)
            folder = folder.parent
        folders.append(base)
    return [folder for folder in folders if folder.is_dir()]


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
