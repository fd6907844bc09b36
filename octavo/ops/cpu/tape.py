"""A step recorded once and run again as one call, without Python between its kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch.overrides import TorchFunctionMode

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


class _Watch(TorchFunctionMode):
    """Notes the first function that does more than ask a tensor for its form, or look at it in another one."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: str | None = None

    def __torch_function__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", str(function))
        if self.foreign is None and name not in _QUESTIONS and not (name in _VIEWS and _is_view(result, args)):
            self.foreign = name
        return result


_QUESTIONS = frozenset(
    ("__get__", "data_ptr", "dim", "element_size", "is_contiguous", "numel", "size", "storage_offset", "stride")
)
_VIEWS = frozenset(
    ("__getitem__", "as_strided", "chunk", "contiguous", "detach", "expand", "flatten", "narrow", "permute", "reshape")
    + ("select", "split", "squeeze", "t", "tensor_split", "transpose", "unbind", "unflatten", "unsqueeze", "view")
)


def _is_view(result: Any, args: Sequence[Any]) -> bool:
    """Some of these copy where they cannot do otherwise: then the memory is another."""
    results = result if isinstance(result, tuple | list) else (result,)
    memory = args[0].untyped_storage().data_ptr()
    return all(one.untyped_storage().data_ptr() == memory for one in results)
