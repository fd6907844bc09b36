"""The application over a core that says what it is told, and a parser of a made-up syntax: <think>…</think> is
reasoning, <call NAME>ARGUMENTS</call> a tool call."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI

from octavo.config.serve_options import make_serve_options
from octavo.core.messages import Submit
from octavo.engine.async_engine import AsyncEngine
from octavo.server.app import make_app
from octavo.server.output_parser import Event, Reasoning, Text, ToolCallArguments, ToolCallStart
from octavo.server.state import ServedModel, ServerState
from tests.unit.engine.scripted import ScriptedCore, byte_level_tokenizer, scripted_frontend

TEMPLATE = (
    "{% if tools %}T{{ tools | tojson }}\n{% endif %}{% for m in messages %}{{ m.role }}:"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %};"
    "{% endfor %}{% if add_generation_prompt %}A:{{ begin }}{% endif %}"
)
_MARK = re.compile(r"<think>|</think>|<call (\w+)>|</call>")


class TaggedParser:
    """Whole marks only; what may become one is kept back."""

    needs_special_tokens = False

    def __init__(self, reasons: bool) -> None:
        self._text, self._kind, self._calls = "", "reasoning" if reasons else "text", -1

    def push(self, text: str, token_ids: Sequence[int]) -> list[Event]:
        self._text += text
        events: list[Event] = []
        while (mark := _MARK.search(self._text)) is not None:
            events += self._say(self._text[: mark.start()])
            self._text = self._text[mark.end() :]
            if mark[0] == "<think>":
                self._kind = "reasoning"
            elif mark[1]:
                self._kind, self._calls = "call", self._calls + 1
                events.append(ToolCallStart(self._calls, f"call_{self._calls}", mark[1]))
            else:
                self._kind = "text"
        keep = self._text.rfind("<")
        keep = len(self._text) if keep < 0 else keep
        events += self._say(self._text[:keep])
        self._text = self._text[keep:]
        return events

    def finish(self) -> list[Event]:
        text, self._text = self._text, ""
        return self._say(text)

    def _say(self, text: str) -> list[Event]:
        if not text:
            return []
        if self._kind == "call":
            return [ToolCallArguments(self._calls, text)]
        return [Reasoning(text) if self._kind == "reasoning" else Text(text)]


@dataclass
class Server:
    app: FastAPI
    state: ServerState
    client: httpx.AsyncClient
    core: ScriptedCore
    engine: AsyncEngine

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.client.post(path, json=body)

    async def json(self, path: str, **body: Any) -> Any:
        response = await self.post(path, **body)
        assert response.status_code == 200, response.text
        return response.json()

    async def chunks(self, path: str, **body: Any) -> list[Any]:
        """The data of a stream's events."""
        response = await self.post(path, stream=True, **body)
        assert response.status_code == 200, response.text
        return [
            line if line == "[DONE]" else json.loads(line)
            for line in re.findall(r"^data: (.*)$", response.text, re.MULTILINE)
        ]


@asynccontextmanager
async def scripted_server(
    answer: str | Callable[[Submit], str], tokens_per_step: int = 1, **options: Any
) -> AsyncIterator[Server]:
    tokenizer = byte_level_tokenizer()

    def script(submit: Submit) -> list[int]:
        text = answer if isinstance(answer, str) else answer(submit)
        assert tokenizer.eos_token_id is not None
        return [*tokenizer.encode(text), tokenizer.eos_token_id]

    frontend, core = scripted_frontend(script, tokenizer, tokens_per_step, TEMPLATE)
    engine = AsyncEngine.from_frontend(frontend)
    state = ServerState(make_serve_options({"served_model_name": ["m", "also"], **options}))
    app = make_app(state)
    served = ServedModel.of(engine, state.options)
    served.tool_parser, served.reasoning_parser = "tagged", "tagged"
    state.served.set_result(served)
    transport = httpx.ASGITransport(app=app)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield Server(app, state, client, core, engine)
    finally:
        engine.shutdown()


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))  # type: ignore[arg-type]
