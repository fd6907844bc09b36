"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request, Response

from octavo.core.outputs import CompletionOutput
from octavo.core.params import SamplingParams
from octavo.errors import InvalidParameter, InvalidRequest
from octavo.server.answer import Answer, TokenCounts, new_answer
from octavo.server.logprobs import (
    TokenNames,
    chat_logprobs,
    prompt_logprobs,
    refuse_prompt_logprobs_in_stream,
)
from octavo.server.output_parser import Event, Reasoning, Text, ToolCallArguments, ToolCallStart
from octavo.server.prompts import PreparedPrompt, conversation_from, prepare_conversation, truncate
from octavo.server.protocol.chat import ChatCompletionRequest, ChatCompletionResponse
from octavo.server.protocol.fields import StreamOptions
from octavo.server.routing import STREAMED, make_router
from octavo.server.sampling import make_params, refuse_unsupported
from octavo.server.sse import DONE, answer_whole, data, open_stream
from octavo.server.state import ServedModel, ServerState, engine_id, public_id, served_model, state_of
from octavo.server.structured import ForcedTools, after_thinking, form_of

router = make_router("chat")


@router.post("/v1/chat/completions", response_model=ChatCompletionResponse, responses=STREAMED)
async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
    """Answers a conversation."""
    state = state_of(request)
    job = await prepare(body, served_model(request), public_id(request, "chatcmpl-", body.request_id))
    if body.stream:
        has_form = job.params.structured_outputs is not None
        return await open_stream(chunks(job, state), state.options.sse_keep_alive_interval, has_form=has_form)
    return await answer_whole(request, complete(job, state))


@dataclass
class ChatJob:
    """A checked request."""

    id: str
    model: str
    body: ChatCompletionRequest
    served: ServedModel
    prompt: PreparedPrompt
    params: SamplingParams
    tools: list[dict[str, Any]] | None
    forced: ForcedTools | None
    names: TokenNames
    role: str
    echo: str
    created: int = field(default_factory=lambda: int(time.time()))

    def new_answer(self) -> Answer:
        return new_answer(
            self.served,
            self.tools,
            self.prompt,
            bool(self.body.stream),
            "chat",
            forced=self.forced,
            keep_reasoning=self.body.include_reasoning,
            parallel_calls=self.body.parallel_tool_calls is not False,
        )

    def generate(self) -> AsyncGenerator[Any, None]:
        self.served.log_request(self.id, self.prompt.text, self.prompt.token_ids, self.params)
        return self.served.engine.generate(  # type: ignore[return-value]
            self.prompt.for_engine(self.body.cache_salt),
            self.params,
            engine_id(self.id),
            priority=self.body.priority,
        )

    def logprobs(self, completion: CompletionOutput) -> dict[str, Any] | None:
        if completion.logprobs is None:
            return None
        num_top, named = self.body.top_logprobs or 0, self.body.logprob_token_ids
        entries = chat_logprobs(completion.logprobs, completion.token_ids, num_top, self.names, named)
        return {"content": entries}


async def prepare(body: ChatCompletionRequest, served: ServedModel, answer_id: str) -> ChatJob:
    """Raises InvalidRequest, ApiError."""
    model = served.name_for(body.model)
    refuse_unsupported(body)
    check_stream_options(body.stream, body.stream_options)
    refuse_prompt_logprobs_in_stream(body, body.stream)
    forced = forced_tools(body.tool_choice, body.parallel_tool_calls)
    tools = chosen_tools(body, served, forced)
    conversation = conversation_from(body, body.messages, reasoning_effort=body.reasoning_effort)
    conversation.tools = tools
    prompt = await prepare_conversation(served, conversation)
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    truncate(prompt, body, served, max_tokens)
    form = form_of(
        body,
        format=None if body.response_format is None else body.response_format.model_dump(exclude_unset=True),
        tools=tools,
        forced=forced,
        tool_parser=served.tool_parser,
    )
    params = make_params(
        body,
        served,
        num_prompt_tokens=len(prompt.token_ids),
        max_tokens=max_tokens,
        n=body.n,
        logprobs=num_logprobs(body, served.engine.inputs.limits.max_logprobs),
        stream=bool(body.stream),
        parser=served.new_parser(tools, False, forced),
        ends_in_reasoning=prompt.ends_in_reasoning,
        form=after_thinking(form, served, prompt.ends_in_reasoning),
    )
    as_ids = bool(body.return_tokens_as_token_ids or served.options.return_tokens_as_token_ids)
    role = served.options.response_role if body.add_generation_prompt else body.messages[-1].role
    last = conversation.messages[-1]
    content = last.get("content")
    echo = content if body.echo and last["role"] == role and isinstance(content, str) else ""
    names = TokenNames(served.engine.outputs.token_text, as_ids)
    return ChatJob(answer_id, model, body, served, prompt, params, tools, forced, names, role, echo)


def num_logprobs(body: ChatCompletionRequest, limit: int) -> int | None:
    top = body.top_logprobs or 0
    if not body.logprobs:
        if top:
            raise InvalidRequest("top_logprobs needs logprobs to be true", "top_logprobs")
        return None
    if top < -1 or (limit != -1 and top > limit):
        raise InvalidParameter("top_logprobs", top, f"from 0 to {limit} (max_logprobs), or -1 for the whole vocabulary")
    return top


def check_stream_options(stream: bool | None, options: StreamOptions | None) -> None:
    if options is not None and not stream:
        raise InvalidRequest("stream_options needs stream to be true", "stream_options")


def forced_tools(choice: str | dict[str, Any] | None, parallel: bool | None) -> ForcedTools | None:
    """Of a tool_choice: what must be called, if anything must."""
    match choice:
        case None | "none" | "auto":
            return None
        case "required":
            return ForcedTools(None, parallel is not False)
        case {"type": "function", "function": {"name": str(name)}}:
            return ForcedTools(name)
        case {"type": "allowed_tools"}:
            mode, _ = allowed_tools(choice)
            return ForcedTools(None, parallel is not False) if mode == "required" else None
    raise InvalidParameter(
        "tool_choice", choice, 'none, auto, required or {"type": "function", "function": {"name": ...}}'
    )


def allowed_tools(choice: Any) -> tuple[str, list[str]]:
    """The mode, auto or required, and the names of a tool_choice of type allowed_tools. Chat completions have both in
    an object of its own, Responses have not."""
    inner = choice.get("allowed_tools", choice)
    match inner:
        case {"mode": "auto" | "required" as mode, "tools": [_, *_] as tools}:
            names = [tool.get("function", tool).get("name") for tool in tools if isinstance(tool, dict)]
            if len(names) == len(tools) and all(isinstance(name, str) for name in names):
                return mode, names
    raise InvalidParameter("tool_choice", choice, "allowed_tools with a mode (auto or required) and tools with names")


def only_allowed(tools: list[dict[str, Any]], choice: Any) -> list[dict[str, Any]]:
    """The tools that a tool_choice leaves, where it names several."""
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return tools
    _, names = allowed_tools(choice)
    known = {tool["function"]["name"] for tool in tools}
    for name in names:
        if name not in known:
            raise InvalidRequest(
                f"tool_choice allows the tool {name!r}, but tools has {', '.join(known)}", "tool_choice"
            )
    return [tool for tool in tools if tool["function"]["name"] in names]


def chosen_tools(
    body: ChatCompletionRequest, served: ServedModel, forced: ForcedTools | None
) -> list[dict[str, Any]] | None:
    """Tools that the model is told of: none where it shall call none."""
    if not body.tools or body.tool_choice == "none":
        return None
    if forced is None:
        require_tool_calls(served)
    tools = [tool.model_dump(exclude_unset=True) | {"type": "function"} for tool in body.tools]
    return only_allowed(tools, body.tool_choice)


def require_tool_calls(served: ServedModel) -> None:
    if not served.options.enable_auto_tool_choice:
        raise InvalidRequest("tools cannot be served: --no-enable-auto-tool-choice", "tools")
    if served.tool_parser is None:
        raise InvalidRequest(
            "tools cannot be served: how this model writes tool calls is not known (name it with --tool-call-parser)",
            "tools",
        )


async def complete(job: ChatJob, state: ServerState) -> ChatCompletionResponse:
    counts = TokenCounts(num_prompt=len(job.prompt.token_ids))
    with state.active():
        async with aclosing(job.generate()) as outputs:
            async for output in outputs:
                final = output
    counts.note(final)
    choices = []
    for completion in final.outputs:
        answer = job.new_answer()
        answer.take(completion)
        counts.num_reasoning += answer.num_reasoning_tokens(job.served)
        choices.append(_choice(job, answer, completion))
    return ChatCompletionResponse.model_validate(
        {
            "id": job.id,
            "created": job.created,
            "model": job.model,
            "choices": choices,
            "usage": counts.openai(job.served.options.enable_prompt_tokens_details),
            **prompt_logprobs(final, is_wanted=True),
            "prompt_token_ids": job.prompt.token_ids if job.body.return_token_ids else None,
            "prompt_text": job.prompt.text if job.body.return_prompt_text else None,
        }
    )


def _choice(job: ChatJob, answer: Answer, completion: CompletionOutput) -> dict[str, Any]:
    calls = answer.as_message().get("tool_calls")
    content: str | None = job.echo + answer.content
    return {
        "index": completion.index,
        "message": {
            "role": job.role,
            "content": content or (None if calls or answer.reasoning else ""),
            "tool_calls": calls,
            "reasoning": answer.reasoning or None if job.body.include_reasoning else None,
        },
        "logprobs": job.logprobs(completion),
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
        "token_ids": completion.token_ids if job.body.return_token_ids else None,
    }


async def chunks(job: ChatJob, state: ServerState) -> AsyncGenerator[bytes, None]:
    """The events of a stream."""
    with state.active():
        writer = _ChunkWriter(job)
        async with aclosing(job.generate()) as outputs:
            async for output in outputs:
                writer.counts.note(output)
                yield b"".join([part for completion in output.outputs for part in writer.write(completion)])
        yield writer.end() + DONE


class _ChunkWriter:
    """Makes the chunks of one stream."""

    def __init__(self, job: ChatJob) -> None:
        self.job = job
        self.counts = TokenCounts(num_prompt=len(job.prompt.token_ids))
        self.answers: dict[int, Answer] = {}
        self._waiting: dict[int, dict[str, Any]] = {}  # logprobs and token ids of text that is still kept back
        options = job.body.stream_options
        self.wants_usage = job.served.options.enable_force_include_usage or bool(options and options.include_usage)
        self.usage_always = self.wants_usage and bool(options and options.continuous_usage_stats)

    def write(self, completion: CompletionOutput) -> list[bytes]:
        index = completion.index
        answer = self.answers.get(index)
        events: list[bytes] = []
        if answer is None:
            answer = self.answers[index] = self.job.new_answer()
            events.append(self._chunk({"index": index, "delta": {"role": self.job.role, "content": self.job.echo},
                                       "logprobs": None, "finish_reason": None}, is_first=True))  # fmt: skip
        deltas = list(_deltas(answer.take(completion)))
        self._keep(completion)
        is_last = answer.finish_reason is not None
        if is_last and not deltas:
            deltas.append({})
        for position, delta in enumerate(deltas):
            choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            if position == 0:
                choice |= self._waiting.pop(index, {})
            if is_last and position == len(deltas) - 1:
                choice |= {"finish_reason": answer.finish_reason, "stop_reason": answer.stop_reason}
            events.append(self._chunk(choice))
        return events

    def _keep(self, completion: CompletionOutput) -> None:
        """Puts what belongs to tokens by, until there is a chunk for it."""
        logprobs = self.job.logprobs(completion)
        if logprobs is None and not self.job.body.return_token_ids:
            return
        kept = self._waiting.setdefault(completion.index, {})
        if logprobs is not None:
            kept.setdefault("logprobs", {"content": []})["content"] += logprobs["content"]
        if self.job.body.return_token_ids:
            kept["token_ids"] = [*kept.get("token_ids", ()), *completion.token_ids]

    def _chunk(self, choice: dict[str, Any], is_first: bool = False) -> bytes:
        chunk = self._head([choice])
        if self.wants_usage:
            chunk["usage"] = self._usage() if self.usage_always else None
        if is_first and self.job.body.return_token_ids:
            chunk["prompt_token_ids"] = self.job.prompt.token_ids
        return data(chunk)

    def end(self) -> bytes:
        if not self.wants_usage:
            return b""
        self.counts.num_reasoning = sum(a.num_reasoning_tokens(self.job.served) for a in self.answers.values())
        return data({**self._head([]), "usage": self._usage()})

    def _head(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        job = self.job
        return {
            "id": job.id,
            "object": "chat.completion.chunk",
            "created": job.created,
            "model": job.model,
            "choices": choices,
        }

    def _usage(self) -> dict[str, Any]:
        return self.counts.openai(self.job.served.options.enable_prompt_tokens_details)


def _deltas(events: list[Event]) -> list[dict[str, Any]]:
    """Events as deltas, neighbours of one kind together."""
    deltas: list[dict[str, Any]] = []
    for event in events:
        last = deltas[-1] if deltas else {}
        match event:
            case Text(text):
                if "content" in last:
                    last["content"] += text
                else:
                    deltas.append({"content": text})
            case Reasoning(text):
                if "reasoning" in last:
                    last["reasoning"] += text
                else:
                    deltas.append({"reasoning": text})
            case ToolCallStart(index, call_id, name):
                function = {"name": name, "arguments": ""}
                deltas.append(
                    {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
                )
            case ToolCallArguments(index, fragment):
                calls = last.get("tool_calls")
                if calls and calls[0]["index"] == index:
                    calls[0]["function"]["arguments"] += fragment
                else:
                    deltas.append({"tool_calls": [{"index": index, "function": {"arguments": fragment}}]})
    return deltas
