"""200 streams of one engine beside a request that does harm: it ends with its error, and they get the tokens that they
get without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.core.structured import StructuredOutputsParams
from octavo.engine.async_engine import AsyncEngine
from octavo.errors import InvalidRequest, RequestFailed
from octavo.structured import outlines
from tests.tiny_model import write_tiny_model

NUM_STREAMS = 200
NUM_OUTPUT = 16
FAILS_AT = 3  # tokens of its own that a harmful processor has seen


def raises(output: list[int], logits: Tensor) -> Tensor:
    if len(output) == FAILS_AT:
        raise LookupError("at the fourth")
    return logits


def hangs(output: list[int], logits: Tensor) -> Tensor:
    if len(output) == FAILS_AT:
        time.sleep(1.0)
    return logits


def spoils(output: list[int], logits: Tensor) -> Tensor:
    return torch.full_like(logits, torch.nan) if len(output) == FAILS_AT else logits


NESTED = "(" * 20_000 + '"a"' + ")" * 20_000
EXPONENTIAL = "(x+x+)+y" * 20 + "(.*a.{30}){4}"

STATES = "(.*[ab].{14}c){6}"

FAULTS: dict[str, tuple[dict[str, Any], type[Exception] | None, str]] = {  # fields, what is raised, words of it
    "deep nesting": ({"structured_outputs": {"grammar": f"start: {NESTED}"}}, InvalidRequest, "grammar"),
    "left recursion": ({"structured_outputs": {"grammar": "start: start"}}, InvalidRequest, "grammar"),
    "exponential regex": (
        {"structured_outputs": {"regex": STATES, "backend": "outlines"}}, InvalidRequest, "compiling it takes more than"
    ),
    # of automata whose states are made as they are met
    "exponential regex, served": ({"structured_outputs": {"regex": EXPONENTIAL}}, None, ""),
    "raises": ({"logits_processors": [raises]}, RequestFailed, "raises raised LookupError: at the fourth"),
    "hangs": ({"logits_processors": [hangs]}, RequestFailed, "logits_processor_timeout"),
    "NaN": ({"logits_processors": [spoils]}, RequestFailed, "logits that are not finite"),
}  # fmt: skip


@dataclass
class Stream:
    token_ids: list[int]
    error: Exception | None
    started: float
    ended: float


async def stream(
    engine: AsyncEngine, prompt: list[int], params: SamplingParams, running: asyncio.Event | None = None
) -> Stream:
    """What came of a request; ``running`` is set at its first token."""
    made = Stream([], None, time.monotonic(), 0.0)
    try:
        async for output in engine.generate(prompt, params):
            made.token_ids += output.outputs[0].token_ids
            if running is not None:
                running.set()
    except Exception as error:
        made.error = error
    made.ended = time.monotonic()
    return made


def params(**fields: Any) -> SamplingParams:
    form = fields.pop("structured_outputs", None)
    if form is not None:
        fields["structured_outputs"] = StructuredOutputsParams(**form)
    given = {"max_tokens": NUM_OUTPUT, "ignore_eos": True, "output_kind": RequestOutputKind.DELTA}
    return SamplingParams(**{**given, **fields})


def ask(engine: AsyncEngine, index: int, running: asyncio.Event) -> Any:
    """A stream like others; every third with a feature of its own."""
    own: list[dict[str, Any]] = [{}, {"temperature": 0.0}, {"presence_penalty": 0.5, "top_p": 0.9}]
    prompt = [5 + index % 50, *range(20, 20 + index % 7)]
    return stream(engine, prompt, params(seed=index, **own[index % 3]), running)


async def beside(engine: AsyncEngine, guilty: SamplingParams | None) -> tuple[list[Stream], Stream | None]:
    """All streams; the harmful request comes when the first of them run and before the others."""
    async with asyncio.timeout(60):
        running = asyncio.Event()
        tasks = [asyncio.create_task(ask(engine, i, running)) for i in range(NUM_STREAMS // 4)]
        await running.wait()
        poison = None if guilty is None else asyncio.create_task(stream(engine, [7, 8, 9], guilty))
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(ask(engine, i, running)) for i in range(NUM_STREAMS // 4, NUM_STREAMS)]
        return list(await asyncio.gather(*tasks)), None if poison is None else await poison


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsyncEngine]:
    model = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outlines, "COMPILE_SECONDS", 1.5)
        made = AsyncEngine(
            str(model), load_format="dummy", threads=1, num_gpu_blocks_override=1024, max_num_seqs=NUM_STREAMS + 8
        )
        yield made
        made.shutdown()


@pytest.mark.slow
def test_only_the_guilty_request_ends(engine: AsyncEngine) -> None:
    async def main() -> None:
        plain, _ = await beside(engine, None)
        wanted = [one.token_ids for one in plain]
        assert len({tuple(token_ids) for token_ids in wanted}) > NUM_STREAMS // 2
        assert all(one.error is None and len(one.token_ids) == NUM_OUTPUT for one in plain)
        for name, (fields, kind, words) in FAULTS.items():
            streams, guilty = await beside(engine, params(**fields))
            assert guilty is not None
            if kind is None:
                assert guilty.error is None and len(guilty.token_ids) == NUM_OUTPUT, (name, guilty)
            else:
                assert isinstance(guilty.error, kind) and words in str(guilty.error), (name, guilty)
                assert len(guilty.token_ids) == (FAILS_AT if kind is RequestFailed else 0), name
            assert [one.error for one in streams] == [None] * NUM_STREAMS, name
            assert [one.token_ids for one in streams] == wanted, name
            assert guilty.started < max(one.ended for one in streams[: NUM_STREAMS // 4]), (
                f"{name}: nobody ran beside it"
            )
        stats = await engine.core_stats()
        assert (stats.num_running, stats.num_waiting, stats.num_used_blocks) == (0, 0, 0)

    asyncio.run(main())
