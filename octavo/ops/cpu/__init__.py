"""The ops in C++, for processors: csrc/cpu, compiled at installation. Importing this fails where they were not."""

from __future__ import annotations

try:
    from octavo import _cpu  # noqa: F401
except ImportError as error:
    raise ImportError(
        "octavo's CPU kernels are not compiled, so torch's operators compute: quantised weights are expanded to "
        "several times their size, and each token takes several times as long. An installation with a C++ compiler "
        f"(pip install .), or scripts/build_cpu in a checkout, makes them ({error})"
    ) from None

from octavo.ops.cpu.attention import paged_attention
from octavo.ops.cpu.linear import linear_packed, rows_packed

OPS = {function.__name__: function for function in (linear_packed, paged_attention, rows_packed)}
