"""A step recorded once and run again as one call, without Python between its kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch.utils._python_dispatch import TorchDispatchMode

from octavo import _cpu
from octavo.ops.cpu.memory import Arena, results_in

Result = TypeVar("Result")


class Tape:
    """`run` does again what the kernels did in `record`, on the same addresses: what differs from run to run must lie
    in tensors that stay where they are. Operators of torch leave no trace on a tape; `foreign` names the first one that
    did more than look at memory in another way, and then the tape is empty."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._tape = _cpu.Tape()
        self.foreign: str | None = None

    def record(self, compute: Callable[[], Result]) -> Result:
        """Runs `compute`. Its result holds until another tape of this arena runs or is recorded."""
        watch = _Watch()
        with results_in(self._arena):
            self._tape.start()
            try:
                with watch:
                    result = compute()
            except BaseException:
                self._tape.clear()
                raise
            finally:
                self._tape.stop()
        self.foreign = watch.foreign
        if self.foreign is not None:
            self._tape.clear()
        return result

    def run(self) -> None:
        self._tape.run()

    def run_timed(self) -> dict[str, tuple[int, float]]:
        """The same, with a clock: kernel -> (calls, seconds)."""
        return {name: (calls, seconds) for name, calls, seconds in self._tape.run_timed()}

    def __len__(self) -> int:
        return len(self._tape)


class _Watch(TorchDispatchMode):
    """Notes the first operator that computes something."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: str | None = None

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self.foreign is None and not function.is_view:
            self.foreign = str(function)
        return function(*args, **(kwargs or {}))
