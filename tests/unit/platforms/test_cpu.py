from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from octavo.platforms import cpu

CPUINFO = """\
processor\t: 0
model name\t: Test Processor 9000
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse2 {flags}

processor\t: 1
model name\t: Test Processor 9000
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse2 {flags}

processor\t: 2
model name\t: Test Processor 9000
physical id\t: 0
core id\t\t: 1
flags\t\t: fpu sse2 {flags}
"""


@pytest.fixture(autouse=True)
def no_thread_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def machine_with_flags(root: Path, flags: str) -> Path:
    return machine(root, {"proc/cpuinfo": CPUINFO.format(flags=flags)})


@pytest.fixture
def three_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "affinity", lambda: {0, 1, 2})


# ---- processor


def test_instruction_sets_are_those_of_cpuinfo(tmp_path: Path) -> None:
    processor = cpu.read_processor(machine_with_flags(tmp_path, "avx2 avx512f avx512_vnni amx_int8 avx512_unheard_of"))
    assert processor.name == "Test Processor 9000"
    assert processor.instruction_sets == ("avx2", "avx512f", "avx512_vnni", "amx_int8")
    assert processor.core_of == {0: (0, 0), 1: (0, 0), 2: (0, 1)}


def test_arm_processors_name_features(tmp_path: Path) -> None:
    content = "processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n"
    processor = cpu.read_processor(machine(tmp_path, {"proc/cpuinfo": content}))
    assert processor.instruction_sets == ("asimd", "bf16", "i8mm")
    assert processor.name


@pytest.mark.parametrize(
    ("flags", "dtypes"),
    [
        ("avx2", ("float32",)),
        ("avx512f", ("float32",)),
        ("avx512f avx512_bf16", ("bfloat16", "float32")),
        ("amx_bf16 amx_fp16", ("bfloat16", "float32", "float16")),
    ],
)
def test_a_dtype_is_fast_only_where_the_processor_computes_in_it(
    tmp_path: Path, flags: str, dtypes: tuple[str, ...]
) -> None:
    platform = cpu.platform(machine_with_flags(tmp_path, flags))
    assert platform.fast_dtypes == dtypes
    assert set(platform.dtypes) == {"float32", "bfloat16", "float16"}


@pytest.mark.usefixtures("three_cpus")
def test_two_threads_of_a_core_count_once(tmp_path: Path) -> None:
    assert cpu.platform(machine_with_flags(tmp_path, "")).num_threads == 2


@pytest.mark.usefixtures("three_cpus")
def test_without_cpuinfo_every_allowed_cpu_counts(tmp_path: Path) -> None:
    assert cpu.platform(tmp_path).num_threads == 3


def test_affinity_bounds_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "affinity", lambda: {1})
    assert cpu.platform(machine_with_flags(tmp_path, "")).num_threads == 1


def test_threads_get_one_cpu_of_each_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = machine_with_flags(tmp_path, "")
    monkeypatch.setattr(cpu, "affinity", lambda: {0, 1, 2})
    assert cpu.platform(root).cpus == (0, 2)
    monkeypatch.setattr(cpu, "affinity", lambda: {1, 2})
    assert cpu.platform(root).cpus == (1, 2)


@pytest.mark.usefixtures("three_cpus")
@pytest.mark.parametrize(("text", "cpus"), [("1", (0,)), ("1,4", (0,)), ("64", (0, 2)), ("no", (0, 2)), ("0", (0, 2))])
def test_omp_num_threads_bounds_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, cpus: tuple[int, ...]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert cpu.platform(machine_with_flags(tmp_path, "")).cpus == cpus


# ---- control groups

V2 = {"proc/self/cgroup": "0::/pod/app\n"}
V1 = {"proc/self/cgroup": "5:memory:/pod/app\n4:cpu,cpuacct:/pod/app\n1:name=systemd:/\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({**V2, "sys/fs/cgroup/pod/app/cpu.max": "150000 100000\n"}, 1.5),
        ({**V2, "sys/fs/cgroup/pod/app/cpu.max": "max 100000\n"}, None),
        ({**V2, "sys/fs/cgroup/pod/app/x": "", "sys/fs/cgroup/pod/cpu.max": "50000 100000\n"}, 0.5),
        # The path is the host's: inside a container the mount itself is the group.
        ({**V2, "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
        (
            {
                **V1,
                "sys/fs/cgroup/cpu,cpuacct/pod/app/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu,cpuacct/pod/app/cpu.cfs_period_us": "100000\n",
            },
            2.0,
        ),
        (
            {
                **V1,
                "sys/fs/cgroup/cpu/pod/app/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/pod/app/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({}, None),
    ],
)
def test_cpu_quota(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert cpu.cpu_quota(machine(tmp_path, files)) == quota


@pytest.mark.usefixtures("three_cpus")
def test_a_quota_bounds_the_threads_and_is_rounded_up(tmp_path: Path) -> None:
    machine(tmp_path, {**V2, "sys/fs/cgroup/pod/app/cpu.max": "110000 100000\n"})
    assert cpu.platform(tmp_path).num_threads == 2
    machine(tmp_path, {"sys/fs/cgroup/pod/app/cpu.max": "10000 100000\n"})
    assert cpu.platform(tmp_path).num_threads == 1


def test_memory_is_the_groups_where_that_is_less(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/pod/app/"
    files = {folder + "memory.max": "1000000\n", folder + "memory.current": "400000\n"}
    machine(tmp_path, {**V2, **files, folder + "memory.stat": "anon 1\ninactive_file 100000\n"})
    assert cpu.memory_limit(tmp_path) == 1000000
    assert cpu.memory_info(tmp_path) == (700000, 1000000)


def test_a_parents_limit_counts_too(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/pod/app/memory.max": "max\n", "sys/fs/cgroup/pod/memory.max": "500000\n"}
    machine(tmp_path, {**V2, **files, "sys/fs/cgroup/pod/memory.current": "600000\n"})
    assert cpu.memory_info(tmp_path) == (0, 500000)


def test_memory_of_the_older_control_groups(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory/pod/app/"
    files = {folder + "memory.limit_in_bytes": "1000000\n", folder + "memory.usage_in_bytes": "250000\n"}
    machine(tmp_path, {**V1, **files, folder + "memory.stat": "total_inactive_file 50000\n"})
    assert cpu.memory_info(tmp_path) == (800000, 1000000)


def test_no_limit_is_the_machines_memory(tmp_path: Path) -> None:
    machine(tmp_path, {**V1, "sys/fs/cgroup/memory/pod/app/memory.limit_in_bytes": "9223372036854771712\n"})
    assert cpu.memory_limit(tmp_path) is None
    assert cpu.memory_info(tmp_path)[1] == psutil.virtual_memory().total
