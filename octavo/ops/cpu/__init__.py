"""The ops in C++, for processors: csrc/cpu, compiled at installation. Importing this fails where they were not."""

from __future__ import annotations

try:
    from octavo import _cpu  # noqa: F401
except ImportError as error:
    # the figures are those of the demo model on two cores with AMX
    why = "" if "cannot import name" in str(error) else f" ({error})"
    raise ImportError(
        "octavo's CPU kernels are not compiled, so torch's operators compute: quantised weights are expanded (the demo "
        "model's 92 MiB to 256), and a token takes about 3 times as long. Where there is a C++ compiler, pip install . "
        f"makes them, or scripts/build_cpu in a checkout{why}"
    ) from None

from octavo.ops.cpu.linear import linear_packed, rows_packed

OPS = {function.__name__: function for function in (linear_packed, rows_packed)}
