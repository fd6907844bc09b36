"""A process that compiles one kernel of FlashAttention-4 and ends: the other half of flash_compile.py.

python -m octavo.attention.flash_child < a line that says which
"""

from __future__ import annotations

import os
import select
import sys
import threading

import torch

from octavo.attention.flash_compile import TensorShape, decode, rebuild
from octavo.attention.flash_import import import_flash

IDLE_SECONDS = 60.0  # without a call


def main() -> None:
    function = import_flash()  # before there is a call, since it takes longest
    if not select.select([sys.stdin], [], [], IDLE_SECONDS)[0]:
        sys.exit("there was nothing to do")
    line = sys.stdin.buffer.readline()
    if not line:  # there is nothing to do
        return
    described = decode(line)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    device = next(it.device for it in described.values() if isinstance(it, TensorShape))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with torch.inference_mode():
        function(**rebuild(described))
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
