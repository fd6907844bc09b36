"""Several requests to the engine as one stream of outputs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from octavo.core.outputs import RequestOutput


async def merge(
    sources: Sequence[AsyncGenerator[RequestOutput, None]],
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """(which source, its output) as they come. Each source waits until its last output was taken. An error of one, or
    closing, ends all."""
    if len(sources) == 1:
        try:
            async for output in sources[0]:
                yield 0, output
        finally:
            await sources[0].aclose()
        return
    waiting: dict[asyncio.Future[Any], int] = {}
    try:
        for index, source in enumerate(sources):
            waiting[asyncio.ensure_future(anext(source))] = index
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: waiting[task]):
                index = waiting.pop(task)
                try:
                    output = task.result()
                except StopAsyncIteration:
                    continue
                yield index, output
                waiting[asyncio.ensure_future(anext(sources[index]))] = index
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for source in sources:
            await source.aclose()
