"""Kernels compiled ahead, for GPUs that are not there: in a process of its own, without Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from octavo.ops import ahead

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "model"), [(90, "llama"), (80, "gemma3"), (120, "qwen3")])
def test_a_rehearsal_compiles_all_that_is_launched_after_it(arch: int, model: str, tmp_path: Path) -> None:
    """And every kernel of a step compiles to machine code for this GPU."""
    pytest.importorskip("triton")
    folders = {"TRITON_HOME": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path / "kernels")}
    environment = {**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1", **folders}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # one that is there would launch them
    run = subprocess.run(
        [sys.executable, "-m", "tests.ops.compile_only", str(arch), model],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])[model]
    assert not found["failures"]
    assert {"_decode_kernel", "_prefill_kernel", "_choose_tokens", "_rope_and_write"} <= set(found["ahead"])
    assert not found["late"]


def kernel(**flags: Any) -> Any:
    params = [
        SimpleNamespace(name=name, is_constexpr=name == "SIZE", do_not_specialize=False, **plain)
        for name, plain in (("x", {"do_not_specialize_on_alignment": False}), ("n", _FREE), ("SIZE", _FREE))
    ]
    for param in params:
        vars(param).update(flags.get(param.name, {}))
    return SimpleNamespace(arg_names=["x", "n", "SIZE"], params=params)


_FREE = {"do_not_specialize_on_alignment": False}


@pytest.mark.parametrize(
    ("one", "other", "are_equal"),
    [
        (((0, 32), {"SIZE": 2}), ((0, 48), {"SIZE": 2}), True),
        (((0, 32), {"SIZE": 2}), ((0, 33), {"SIZE": 2}), False),  # divisible by 16 or not
        (((0, 2), {"SIZE": 2}), ((0, 1), {"SIZE": 2}), False),  # one
        (((0, 2), {"SIZE": 2}), ((0, 1 << 40), {"SIZE": 2}), False),  # 64 bits
        (((0, 2), {"SIZE": 2}), ((0, 2), {"SIZE": 4}), False),
        (((0, 2), {"SIZE": 2}), ((0, 2), {"SIZE": 2, "num_warps": 8}), False),
        (((0, 2), {"SIZE": 2}), ((1, 2), {"SIZE": 2}), False),  # where the tensor begins
        (((0, 2), {"SIZE": 2}), ((4, 2), {"SIZE": 2}), True),
    ],
)
def test_variants_are_those_of_triton(one: Any, other: Any, are_equal: bool) -> None:
    tensor, of = torch.zeros(16), kernel()
    keys = [ahead.variant(of, (tensor[start:], n), options) for (start, n), options in (one, other)]
    assert (keys[0] == keys[1]) is are_equal


def test_what_is_not_specialised_makes_no_variant() -> None:
    tensor = torch.zeros(16)
    of = kernel(n={"do_not_specialize": True}, x={"do_not_specialize_on_alignment": True})
    assert ahead.variant(of, (tensor, 1), {}) == ahead.variant(of, (tensor[1:], 32), {})


def test_other_compilers_work_beside_and_are_waited_for() -> None:
    pytest.importorskip("triton")
    may_end, calls = threading.Event(), []

    def compile_it(number: int) -> None:
        assert may_end.wait(10)
        calls.append((number, threading.current_thread() is threading.main_thread()))

    assert not ahead.is_rehearsing()
    with ahead.Rehearsal(torch.device("cpu"), num_threads=1) as rehearsal:
        assert ahead.is_rehearsing()
        for number in range(3):
            ahead.compile_beside("one", compile_it, number)
        rehearsal.mark()
    assert not ahead.is_rehearsing() and not calls
    rehearsal.wait()  # for kernels alone
    assert not calls
    ahead.wait_for("another")
    threading.Timer(0.1, may_end.set).start()
    rehearsal.wait_beside()
    assert calls == [(0, False)]
    ahead.wait_for("one")
    assert not ahead._beside


def test_what_cannot_be_compiled_is_said_and_is_nobody_s_end(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("triton")
    ended: list[int] = []

    def fail() -> None:
        raise ValueError("no such instruction")

    with ahead.Rehearsal(torch.device("cpu"), num_threads=1) as rehearsal:
        ahead.compile_beside("broken", fail)
        rehearsal.when_done(lambda: ended.append(1))
    ahead.wait_for("broken")
    rehearsal._pool.shutdown(wait=True)
    assert not ended and "not compiled ahead: broken: ValueError: no such instruction" in caplog.text


def test_nothing_is_compiled_where_kernels_are_interpreted() -> None:
    assert ahead.kernel_directory(torch.device("cpu")) is None
    if not torch.cuda.is_available():
        assert ahead.kernel_directory(torch.device("cuda")) is None
