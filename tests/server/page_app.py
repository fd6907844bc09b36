"""The page before a simulated engine and a chat that recites. `python -m tests.server.page_app` serves it on 8000."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from octavo.core.params import SamplingParams
from octavo.engine.async_engine import AsyncEngine
from octavo.server import metrics, page
from octavo.telemetry.recorder import Recorder
from tests.unit.server.simulated import simulated_engine

SPEECH = (
    "An octavo is a book made by folding each sheet three times, into eight leaves of two pages each. The size was "
    "found to be a good one for the hand, and for the saddlebag, and so it stayed with us. In this engine a block is "
    "sixteen tokens, as a sheet is sixteen pages, and a request is a book that grows a word at a time."
)
OTHERS = (" the", " a", " one", " this", " perhaps", " its")


class State:
    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    @property
    def recorder(self) -> Recorder | None:
        return self.engine.recorder


def make_app(engine: AsyncEngine | None = None, *, key: str | None = None, pause: float = 0.03) -> FastAPI:
    """`key`: asked for on everything but the page's own files."""
    engine = engine or simulated_engine(0.012)
    bodies: list[dict[str, Any]] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.shutdown()

    app = FastAPI(lifespan=lifespan)
    app.state.bodies, app.state.engine, app.state.num_left = bodies, engine, 0

    @app.middleware("http")
    async def check_key(request: Request, call_next: Any) -> Any:
        guarded = request.url.path.startswith(("/v1", "/internal"))
        if key is not None and guarded and request.headers.get("authorization") != f"Bearer {key}":
            return JSONResponse({"error": {"message": "this path needs a key"}}, 401)
        return await call_next(request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "simulated", "object": "model"}]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        body = await request.json()
        bodies.append(body)
        asked = body["messages"][-1]["content"]
        if asked == "refuse":
            message = "temperature must be at least 0, got -1"
            return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, 400)
        return StreamingResponse(_recite(app, body, asked, pause), media_type="text/event-stream")

    app.include_router(metrics.router(State(engine)))
    app.include_router(page.router(State(engine)))
    return app


async def _recite(app: FastAPI, body: dict[str, Any], asked: str, pause: float) -> AsyncIterator[str]:
    rng = random.Random(body.get("seed", 0))
    prompt = [rng.randrange(1, 50) for _ in range(40 + 5 * len(asked))]
    said = 0
    behind = app.state.engine.generate(
        {"prompt_token_ids": prompt}, SamplingParams(max_tokens=80, ignore_eos=True, detokenize=False)
    )
    try:
        async for _ in behind:
            break

        def event(delta: dict[str, Any], **more: Any) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": None, **more}
            return f"data: {json.dumps({'id': 'x', 'choices': [choice]})}\n\n"

        yield event({"role": "assistant", "content": ""})
        if asked.startswith("think"):
            for word in ["They", "ask", "about", "books", ".", "I", "should", "be", "brief", "."]:
                yield event({"reasoning": word + " "})
                await asyncio.sleep(pause)
        for position, word in enumerate(SPEECH.split()):
            if asked == "break" and position == 5:
                yield f"data: {json.dumps({'error': {'message': 'the engine core has died'}})}\n\n"
                yield "data: [DONE]\n\n"
                return
            text = word if position == 0 else " " + word
            more = {}
            if body.get("logprobs"):
                logprob = -rng.expovariate(1.6)
                top = [{"token": text, "logprob": logprob}]
                top += [{"token": other, "logprob": logprob - rng.random() * 4} for other in rng.sample(OTHERS, 4)]
                more["logprobs"] = {"content": [{"token": text, "logprob": logprob, "top_logprobs": top}]}
            yield event({"content": text}, **more)
            said += 1
            await asyncio.sleep(pause)
        yield event({}, finish_reason="stop")
        usage = {
            "prompt_tokens": len(prompt),
            "completion_tokens": said,
            "prompt_tokens_details": {"cached_tokens": 16},
        }
        yield f"data: {json.dumps({'id': 'x', 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"
    finally:
        app.state.num_left += 1
        await behind.aclose()


async def traffic(engine: AsyncEngine, seconds: float, concurrency: int = 8) -> None:
    """Requests with common beginnings and all sorts of lengths."""
    rng = random.Random(7)
    stems = [[rng.randrange(1, 50) for _ in range(rng.randrange(60, 300))] for _ in range(3)]
    end = asyncio.get_running_loop().time() + seconds

    async def one() -> None:
        while asyncio.get_running_loop().time() < end:
            prompt = rng.choice(stems) + [rng.randrange(1, 50) for _ in range(rng.randrange(1, 150))]
            params = SamplingParams(max_tokens=rng.randrange(10, 120), ignore_eos=True, detokenize=False)
            async for _ in engine.generate({"prompt_token_ids": prompt}, params):
                pass
            await asyncio.sleep(rng.random() * 0.6)

    await asyncio.gather(*(one() for _ in range(concurrency)))


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(make_app(), port=8000)
