"""What the driver's library says of a GPU, from a driver that is made up."""

# ruff: noqa: N802  (the functions are named by the library)

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from octavo.platforms import cuda, detect


class Driver:
    """The functions of libcuda that are asked."""

    def __init__(self, count: int = 1, major: int = 9, total: int = 141 * 10**9, has_context: bool = False) -> None:
        self.count, self.major, self.total, self.has_context = count, major, total, has_context

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = self.count
        return 0

    def cuDeviceGet(self, out: Any, index: int) -> int:
        out._obj.value = index
        return 0

    def cuDeviceGetAttribute(self, out: Any, attribute: int, handle: Any) -> int:
        out._obj.value = {75: self.major, 76: 0}[attribute]
        return 0

    def cuDeviceGetName(self, out: Any, length: int, handle: Any) -> int:
        out.value = b"NVIDIA H200"
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, handle: Any) -> int:
        out._obj.value = self.total
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        if not self.has_context:
            return 201
        free._obj.value, total._obj.value = self.total // 2, self.total
        return 0


def test_the_record_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "load_driver", lambda: Driver(has_context=True))
    platform = detect.detect()
    assert (platform.name, platform.capability, platform.graphs) == ("cuda", (9, 0), "captured")
    assert platform.fast_dtypes[0] == "bfloat16" and not platform.shares_memory
    assert platform.default_options["max_num_seqs"] == 1024
    assert platform.memory_info() == (141 * 10**9 // 2, 141 * 10**9)


def test_an_old_and_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "load_driver", lambda: Driver(major=7, total=16 * 10**9))
    platform = detect.detect("cuda")
    assert platform.fast_dtypes == ("float16", "float32")
    assert platform.default_options["max_num_seqs"] == 256
    assert platform.memory_info() == (16 * 10**9, 16 * 10**9)  # no context yet: nobody can tell


@pytest.mark.parametrize("driver", [None, Driver(count=0)])
def test_without_a_gpu_the_processor_serves(driver: Driver | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "load_driver", lambda: driver)
    assert detect.detect().name == "cpu"


def test_a_driver_that_lacks_a_function_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cuda, "load_driver", object)
    assert detect.detect().name == "cpu"
    assert "platform cuda is passed over: AttributeError" in caplog.text


def test_no_library_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert cuda.load_driver() is None
