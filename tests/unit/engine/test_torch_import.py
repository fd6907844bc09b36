"""How a process of octavo's own gets torch, and what threads it has: each in a fresh interpreter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.config import env
from octavo.engine import core_process
from octavo.platforms import cpu

_PROBE = """
import json, sys
from pathlib import Path
from octavo.config.env import rest_idle_threads
from octavo.engine import torch_import
rest_idle_threads()
thread = torch_import.map_library()
said = {"imported": "torch" in sys.modules}
if thread is not None:
    thread.join()
    said["mapped"] = "libtorch_cpu.so" in Path("/proc/self/maps").read_text()
import torch
said["computes"] = torch.ones(4, 8).sum().item()
from octavo.ops.threads import describe, use_threads
from octavo.platforms import cpu
platform = cpu.platform()
use_threads(platform.num_threads, platform.cpus)
said["cpus"], said["torch"] = platform.cpus, torch.get_num_threads()
said["says"] = describe(platform.num_threads, platform.cpus)
if platform.has_block_kernels:
    from octavo import _cpu
    said["own"] = _cpu.num_threads()
print(json.dumps(said))
"""


@pytest.mark.skipif(shutil.which("taskset") is None, reason="there is no taskset")
def test_one_processor_of_a_mask_is_one_thread_of_torchs_and_of_octavos() -> None:
    allowed = min(cpu.affinity())
    environment = env.child_environment(PYTHONPATH=os.pathsep.join(sys.path))
    environment.pop("OMP_NUM_THREADS", None)  # the mask alone
    run = subprocess.run(
        ["taskset", "-c", str(allowed), sys.executable, "-c", _PROBE],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    said: dict[str, Any] = json.loads(run.stdout)
    assert not said["imported"] and said.get("mapped", True) and said["computes"] == 32.0
    assert said["cpus"] == [allowed] and said["torch"] == 1 and said.get("own", 1) == 1
    assert "1 " in said["says"] and "pinned" not in said["says"]


def test_the_engines_process_has_torchs_threads_sleep_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loaded(Exception):
        pass

    def map_library() -> None:
        raise Loaded(os.environ.get("OMP_WAIT_POLICY"))

    monkeypatch.setattr(core_process, "torch_import", SimpleNamespace(map_library=map_library))
    monkeypatch.setattr(core_process, "parent_channel", lambda _: None)
    monkeypatch.setattr(core_process, "Parent", lambda *_: None)
    monkeypatch.setattr(core_process.signal, "signal", lambda *_: None)
    monkeypatch.setattr(core_process.gc, "disable", lambda: None)
    monkeypatch.setattr(core_process.cpu, "has_kernels", lambda: True)
    for given, expected in (None, "PASSIVE"), ("ACTIVE", "ACTIVE"):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if given is not None:
            monkeypatch.setenv("OMP_WAIT_POLICY", given)
        with pytest.raises(Loaded, match=expected):
            core_process.main(["0", "/nonexistent"])


def test_children_get_no_threads_of_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert env.child_environment()["OPENBLAS_NUM_THREADS"] == "1"
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    assert env.child_environment()["OPENBLAS_NUM_THREADS"] == "2"
