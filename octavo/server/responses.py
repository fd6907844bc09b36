"""/v1/responses: create, stream, retrieve, cancel, delete, and conversations that go on from an earlier response."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from fastapi import Query, Request, Response

from octavo.core.params import SamplingParams
from octavo.errors import InvalidParameter, InvalidRequest
from octavo.server.answer import Answer, TokenCounts, new_answer
from octavo.server.chat import forced_tools, only_allowed, require_tool_calls
from octavo.server.errors import ApiError, error_fields, named_as
from octavo.server.logprobs import TokenNames, chat_logprobs
from octavo.server.prompts import Conversation, PreparedPrompt, prepare_conversation
from octavo.server.protocol.responses import DeletedResponse, ResponseObject, ResponsesRequest
from octavo.server.response_items import OutputItems, chat_messages
from octavo.server.response_store import KeptResponse, ResponseStore, StoredResponse
from octavo.server.routing import REFUSALS, STREAMED, make_router
from octavo.server.sampling import make_params, not_supported, refuse_unsupported
from octavo.server.sse import answer_whole, named, open_stream
from octavo.server.state import ServedModel, ServerState, engine_id, served_model, state_of
from octavo.server.structured import ForcedTools, after_thinking, form_of

router = make_router("responses")


@router.post("/v1/responses", response_model=ResponseObject, responses=STREAMED)
async def create_response(body: ResponsesRequest, request: Request) -> Response:
    """Answers an input, alone or as the next turn after `previous_response_id`."""
    state, store = state_of(request), store_of(request)
    run = ResponseRun(await prepare(body, served_model(request), store), state, store)
    if body.background:
        entry = run.start()
        if body.stream:
            return await open_stream(entry.follow(0), state.options.sse_keep_alive_interval)
        return _json(entry.response)
    if body.stream:
        has_form = run.job.params.structured_outputs is not None
        keep_alive = state.options.sse_keep_alive_interval
        return await open_stream(run.encoded(), keep_alive, run.error_event, has_form)
    return await answer_whole(request, run.finish())


@router.get("/v1/responses/{response_id}", response_model=ResponseObject, responses=STREAMED)
async def retrieve_response(
    response_id: str,
    request: Request,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=-1)] = None,
) -> Response:
    """A kept response as it is now; `stream` its events, if it is made in the background."""
    entry = await _find(request, response_id)
    if not stream:
        return _json(entry.response)
    if not entry.response["background"]:
        raise InvalidRequest("stream: only responses made in the background can be streamed again", "stream")
    start = 0 if starting_after is None else starting_after + 1
    return await open_stream(entry.follow(start), state_of(request).options.sse_keep_alive_interval)


@router.post("/v1/responses/{response_id}/cancel", response_model=ResponseObject, responses=REFUSALS)
async def cancel_response(response_id: str, request: Request) -> Response:
    """Ends a response that is made in the background. One that has ended stays as it is."""
    entry = await _find(request, response_id)
    if not entry.response["background"]:
        raise InvalidRequest("only responses made in the background can be cancelled", "response_id")
    await entry.cancel()
    return _json(entry.response)


@router.delete("/v1/responses/{response_id}", responses=REFUSALS)
async def delete_response(response_id: str, request: Request) -> DeletedResponse:
    await (await _find(request, response_id)).remove()
    return DeletedResponse(id=response_id)


def store_of(request: Request) -> ResponseStore:
    store: ResponseStore = request.app.state.responses
    return store


async def _find(request: Request, response_id: str) -> KeptResponse:
    entry = await store_of(request).find(response_id)
    if entry is None:
        raise ApiError(404, f"no response {response_id[:100]!r} is kept", "response_id")
    return entry


def _json(response: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(response), media_type="application/json")


# ---- requests


@dataclass
class ResponseJob:
    """A checked request."""

    id: str
    model: str
    body: ResponsesRequest
    served: ServedModel
    messages: list[dict[str, Any]]  # without the instructions, which hold for one response only
    prompt: PreparedPrompt
    params: SamplingParams
    tools: list[dict[str, Any]] | None
    forced: ForcedTools | None
    names: TokenNames

    def new_answer(self) -> Answer:
        return new_answer(
            self.served,
            self.tools,
            self.prompt,
            bool(self.body.stream),
            "responses",
            forced=self.forced,
            keep_reasoning=self.body.include_reasoning,
            parallel_calls=self.body.parallel_tool_calls is not False,
        )

    def generate(self) -> AsyncGenerator[Any, None]:
        self.served.log_request(self.id, self.prompt.text, self.prompt.token_ids, self.params)
        return self.served.engine.generate(  # type: ignore[return-value]
            self.prompt.for_engine(self.body.cache_salt), self.params, engine_id(self.id), priority=self.body.priority
        )

    def skeleton(self) -> dict[str, Any]:
        """The response before it is made."""
        body = self.body
        reasoning = body.reasoning
        return {
            "id": self.id,
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "background": bool(body.background),
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "metadata": body.metadata or {},
            "model": self.model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {
                "effort": reasoning.effort if reasoning else None,
                "summary": reasoning.summary if reasoning else None,
            },
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": body.store is not False,
            "temperature": self.params.temperature,
            "text": {"format": _format(body) or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": [
                {
                    "type": "function",
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters,
                    "strict": bool(tool.strict),
                }
                for tool in body.tools or ()
            ],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": self.params.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None,
            "user": body.user,
        }


async def prepare(body: ResponsesRequest, served: ServedModel, store: ResponseStore) -> ResponseJob:
    """Raises InvalidRequest, ApiError."""
    model = served.name_for(body.model)
    _refuse(body)
    forced = _forced_tools(body)
    tools = _tools(body, served, forced)
    messages = [*await _earlier(body, store), *chat_messages(body.input)]
    if not messages:
        raise InvalidRequest("input must have at least one item, got none", "input")
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning is not None and body.reasoning.effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning.effort)
    instructions = [{"role": "system", "content": body.instructions}] if body.instructions else []
    prompt = await prepare_conversation(
        served, Conversation([*instructions, *messages], tools=tools, variables=variables)
    )
    form = form_of(
        body,
        format=_format(body),
        format_field="text.format",
        tools=tools,
        forced=forced,
        tool_parser=served.tool_parser,
    )
    with named_as(max_tokens="max_output_tokens", logprobs="top_logprobs"):
        params = make_params(
            body,
            served,
            num_prompt_tokens=len(prompt.token_ids),
            max_tokens=body.max_output_tokens,
            logprobs=_num_logprobs(body),
            stream=bool(body.stream or body.background),  # what is made in the background can be followed
            parser=served.new_parser(tools, False, forced),
            ends_in_reasoning=prompt.ends_in_reasoning,
            form=after_thinking(form, served, prompt.ends_in_reasoning),
        )
    names = TokenNames(served.engine.outputs.token_text, served.options.return_tokens_as_token_ids)
    response_id = f"resp_{body.request_id[:256] if body.request_id else secrets.token_hex(16)}"
    if body.request_id and await store.find(response_id) is not None:
        raise InvalidRequest(f"request_id: a response {response_id!r} is kept already", "request_id")
    return ResponseJob(response_id, model, body, served, messages, prompt, params, tools, forced, names)


def _refuse(body: ResponsesRequest) -> None:
    refuse_unsupported(body)
    if body.truncation == "auto":
        raise not_supported("truncation", ", except disabled: got 'auto'")
    if (body.model_extra or {}).get("prompt") is not None:
        raise not_supported("prompt", " (a stored prompt's id)")
    if body.background and body.store is False:
        raise InvalidRequest("background needs store to be true: the response is fetched later", "background")


def _format(body: ResponsesRequest) -> dict[str, Any] | None:
    format = None if body.text is None else body.text.format
    return None if format is None else format.model_dump(exclude_unset=True) | {"type": format.type}


def _forced_tools(body: ResponsesRequest) -> ForcedTools | None:
    choice = body.tool_choice
    if isinstance(choice, dict) and choice.get("type") == "function" and isinstance(choice.get("name"), str):
        choice = {"type": "function", "function": {"name": choice["name"]}}
    elif isinstance(choice, dict) and choice.get("type") != "allowed_tools":
        raise InvalidParameter("tool_choice", choice, 'none, auto, required or {"type": "function", "name": ...}')
    return forced_tools(choice, body.parallel_tool_calls)


def _tools(body: ResponsesRequest, served: ServedModel, forced: ForcedTools | None) -> list[dict[str, Any]] | None:
    if not body.tools or body.tool_choice == "none":
        return None
    tools = []
    for i, tool in enumerate(body.tools):
        if tool.type != "function" or not tool.name:
            raise InvalidRequest(
                f"tools[{i}] must be a function with a name, got the type {tool.type!r}: this server has no tools of "
                "its own",
                f"tools[{i}]",
            )
        function: dict[str, Any] = {"name": tool.name, "parameters": tool.parameters or {"type": "object"}}
        if tool.description is not None:
            function["description"] = tool.description
        if tool.strict:
            function["strict"] = True
        tools.append({"type": "function", "function": function})
    if forced is None:
        require_tool_calls(served)
    return only_allowed(tools, body.tool_choice)


async def _earlier(body: ResponsesRequest, store: ResponseStore) -> list[dict[str, Any]]:
    if body.previous_response_id is None:
        return []
    entry = await store.find(body.previous_response_id)
    if entry is None:
        raise ApiError(404, f"no response {body.previous_response_id[:100]!r} is kept", "previous_response_id")
    if entry.response["status"] not in ("completed", "incomplete"):
        status = entry.response["status"]
        raise InvalidRequest(f"previous_response_id: that response is {status}", "previous_response_id")
    return entry.messages


def _num_logprobs(body: ResponsesRequest) -> int | None:
    num_top = body.top_logprobs or 0
    if num_top < 0:
        raise InvalidParameter("top_logprobs", num_top, "at least 0")
    wants = num_top > 0 or "message.output_text.logprobs" in (body.include or ())
    return num_top if wants else None


# ---- answers


class ResponseRun:
    """Makes one response. `entry.response` is what is known of it at any moment."""

    def __init__(self, job: ResponseJob, state: ServerState, store: ResponseStore) -> None:
        self.job, self.state, self.store = job, state, store
        self.entry = StoredResponse(job.skeleton(), job.messages, store)
        self._num_events = 0

    async def finish(self) -> dict[str, Any]:
        async for _ in self._events():
            pass
        return self.entry.response

    async def encoded(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._events()) as events:
            async for batch in events:
                yield b"".join([named(event) for event in batch])

    def start(self) -> StoredResponse:
        """In the background: whoever asked may leave."""
        self.entry.response["status"] = "queued"
        self.store.put(self.entry)
        self.entry.task = asyncio.ensure_future(self._work())
        return self.entry

    async def _work(self) -> None:
        entry = self.entry
        try:
            async with aclosing(self._events()) as events:
                async for batch in events:
                    await self._tell(batch)
        except asyncio.CancelledError:
            entry.response["status"] = "cancelled"
        except Exception as error:
            entry.response |= {"status": "failed", "error": _failure(error)}
            await self._tell([self._numbered({"type": "response.failed", "response": entry.response})])
        entry.response["completed_at"] = int(time.time())
        if self.store.get(self.job.id) is entry:
            self.store.put(entry)
        await entry.end()

    async def _tell(self, batch: list[dict[str, Any]]) -> None:
        async with self.entry.changed:
            self.entry.events += [named(event) for event in batch]
            self.entry.changed.notify_all()

    def error_event(self, error: Exception) -> bytes:
        fields = error_fields(error)
        event = {"type": "error", "code": str(fields["code"]), "message": fields["message"], "param": fields["param"]}
        return named(self._numbered(event))

    async def _events(self) -> AsyncGenerator[list[dict[str, Any]], None]:
        job, response = self.job, self.entry.response
        counts, answer, items = TokenCounts(num_prompt=len(job.prompt.token_ids)), job.new_answer(), OutputItems()
        waiting: list[dict[str, Any]] = []  # log-probabilities of text that is still kept back
        has_begun = False
        with self.state.active():
            async with aclosing(job.generate()) as outputs:
                async for output in outputs:
                    batch = []
                    if not has_begun:
                        has_begun, response["status"] = True, "in_progress"
                        batch = [{"type": kind, "response": dict(response)} for kind in _BEGINNING]
                    counts.note(output)
                    completion = output.outputs[0]
                    events = answer.take(completion)
                    if completion.logprobs is not None:
                        num_top = job.body.top_logprobs or 0
                        named = job.body.logprob_token_ids
                        waiting += chat_logprobs(completion.logprobs, completion.token_ids, num_top, job.names, named)
                    batch += items.push(events, waiting)
                    if events:
                        waiting = []
                    response["output"] = items.items
                    yield [self._numbered(event) for event in batch]
        counts.num_reasoning = answer.num_reasoning_tokens(job.served)
        yield [self._numbered(event) for event in self._end(answer, items, counts)]

    def _end(self, answer: Answer, items: OutputItems, counts: TokenCounts) -> list[dict[str, Any]]:
        response = self.entry.response
        reason = answer.finish_reason
        is_complete = reason in ("stop", "tool_calls")
        batch = items.close(is_complete)
        response |= {
            "status": "completed" if is_complete else "cancelled" if reason == "abort" else "incomplete",
            "completed_at": int(time.time()),
            "output": items.items,
            "usage": {
                "input_tokens": counts.num_prompt,
                "input_tokens_details": {"cached_tokens": counts.num_cached, "cache_write_tokens": 0},
                "output_tokens": counts.num_completion,
                "output_tokens_details": {"reasoning_tokens": counts.num_reasoning},
                "total_tokens": counts.num_prompt + counts.num_completion,
            },
        }
        if response["status"] == "incomplete":
            why = "max_output_tokens" if reason == "length" else reason
            response["incomplete_details"] = {"reason": why}
        self.entry.messages = [*self.job.messages, answer.as_message()]
        if response["store"] and not response["background"]:
            self.store.put(self.entry)
        kind = "response.completed" if is_complete else "response.incomplete"
        return [*batch, {"type": kind, "response": response}]

    def _numbered(self, event: dict[str, Any]) -> dict[str, Any]:
        event["sequence_number"] = self._num_events
        self._num_events += 1
        return event


_BEGINNING = ("response.created", "response.in_progress")


def _failure(error: Exception) -> dict[str, Any]:
    return {"code": "server_error", "message": error_fields(error)["message"]}
