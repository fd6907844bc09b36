"""A front end of a FrontendGroup, for tests: `python -m tests.server.frontend_child FD`. Streams one request for ever,
again and again, and writes a line for whatever happens to the file that its settings name."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.launch import ParentSource
from octavo.errors import OctavoError


async def main(source: ParentSource) -> None:
    path = Path(source.launch.settings.decode()) / f"{source.index}-{os.getpid()}"

    def note(word: str) -> None:
        with path.open("a") as file:
            file.write(word + "\n")

    engine = AsyncEngine.attach(source)
    await engine.until_ready()
    note("ready" + "".join(sorted({"torch", "transformers"} & set(sys.modules))))
    params = SamplingParams(max_tokens=4000, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA)
    while True:
        try:
            is_first = True
            async for _ in engine.generate([5, source.index], params):
                if is_first:
                    note("streams")
                is_first = False
        except OctavoError as error:
            note(type(error).__name__)


if __name__ == "__main__":
    asyncio.run(main(ParentSource(int(sys.argv[1]))))
