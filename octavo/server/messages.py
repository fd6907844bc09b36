"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from octavo.core.params import SamplingParams
from octavo.errors import InvalidParameter, InvalidRequest
from octavo.server.answer import Answer, TokenCounts, new_answer
from octavo.server.chat import require_tool_calls
from octavo.server.errors import anthropic_error_body, named_as
from octavo.server.output_parser import Event, Reasoning, Text, ToolCallArguments, ToolCallStart, thinking_of
from octavo.server.prompts import Conversation, PreparedPrompt, prepare_conversation
from octavo.server.protocol.fields import SamplingFields
from octavo.server.protocol.messages import (
    ContentBlock,
    CountTokensRequest,
    CountTokensResponse,
    MessageParam,
    MessagesErrorResponse,
    MessagesRequest,
    MessagesResponse,
)
from octavo.server.routing import STREAMED, make_router
from octavo.server.sampling import make_params, refuse_unsupported
from octavo.server.sse import answer_whole, named, open_stream
from octavo.server.state import ServedModel, ServerState, engine_id, public_id, served_model, state_of
from octavo.server.structured import ForcedTools, after_thinking, form_of

router = make_router("messages")

_RESPONSES = {
    status: {**about, "model": MessagesErrorResponse} if status != 200 else about for status, about in STREAMED.items()
}
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@router.post("/v1/messages", response_model=MessagesResponse, responses=_RESPONSES)
async def create_message(body: MessagesRequest, request: Request) -> Response:
    """Answers a conversation."""
    state = state_of(request)
    job = await prepare(body, served_model(request), public_id(request, "msg_"))
    if body.stream:
        has_form = job.params.structured_outputs is not None
        return await open_stream(events(job, state), state.options.sse_keep_alive_interval, _error_event, has_form)
    return await answer_whole(request, complete(job, state))


@router.post("/v1/messages/count_tokens", responses=_RESPONSES)
async def count_tokens(body: CountTokensRequest, request: Request) -> CountTokensResponse:
    """How many tokens a conversation is as a prompt."""
    served = served_model(request)
    served.name_for(body.model)
    prompt = await prepare_conversation(served, conversation_of(body, served))
    return CountTokensResponse(input_tokens=len(prompt.token_ids))


# ---- requests


@dataclass
class MessagesJob:
    """A checked request."""

    id: str
    model: str
    body: MessagesRequest
    served: ServedModel
    prompt: PreparedPrompt
    params: SamplingParams
    tools: list[dict[str, Any]] | None
    forced: ForcedTools | None

    def new_answer(self) -> Answer:
        choice = self.body.tool_choice
        parallel = not (choice and choice.disable_parallel_tool_use)
        streaming = bool(self.body.stream)
        return new_answer(
            self.served,
            self.tools,
            self.prompt,
            streaming,
            "messages",
            forced=self.forced,
            parallel_calls=parallel,
        )

    def generate(self) -> AsyncGenerator[Any, None]:
        self.served.log_request(self.id, self.prompt.text, self.prompt.token_ids, self.params)
        return self.served.engine.generate(  # type: ignore[return-value]
            self.prompt.for_engine(self.body.cache_salt), self.params, engine_id(self.id)
        )


async def prepare(body: MessagesRequest, served: ServedModel, answer_id: str) -> MessagesJob:
    """Raises InvalidRequest, ApiError."""
    model = served.name_for(body.model)
    conversation = conversation_of(body, served)
    prompt = await prepare_conversation(served, conversation)
    if body.max_tokens < 1:
        raise InvalidParameter("max_tokens", body.max_tokens, "at least 1")
    forced = _forced_tools(body)
    form = form_of(
        body,
        format=_format(body),
        format_field="output_config.format",
        tools=conversation.tools,
        forced=forced,
        tool_parser=served.tool_parser,
    )
    room = max(1, served.max_model_len - len(prompt.token_ids))
    fields = SamplingFields.model_validate(
        {
            "temperature": body.temperature,
            "top_k": body.top_k,
            "top_p": body.top_p,
            "stop": body.stop_sequences,
            "thinking_token_budget": _thinking_budget(body, served),
        }
    )
    with named_as(stop="stop_sequences"):
        params = make_params(
            fields,
            served,
            num_prompt_tokens=len(prompt.token_ids),
            max_tokens=min(body.max_tokens, room),  # required by the API, so what programs send fits larger models
            stream=bool(body.stream),
            parser=served.new_parser(conversation.tools, False, forced),
            ends_in_reasoning=prompt.ends_in_reasoning,
            form=after_thinking(form, served, prompt.ends_in_reasoning),
        )
    return MessagesJob(answer_id, model, body, served, prompt, params, conversation.tools, forced)


def _thinking_budget(body: MessagesRequest, served: ServedModel) -> int | None:
    """Tokens. None where thoughts cannot be told from the answer: then the budget is only advice."""
    asked = body.thinking
    if asked is None or asked.type != "enabled" or thinking_of(served.reasoning_parser, False) is None:
        return None
    return asked.budget_tokens


def conversation_of(body: CountTokensRequest, served: ServedModel) -> Conversation:
    """Raises InvalidRequest."""
    refuse_unsupported(body)
    messages: list[dict[str, Any]] = []
    if body.system:
        messages.append({"role": "system", "content": _text_of(body.system, "system")})
    for i, message in enumerate(body.messages):
        messages += _chat_messages(message, f"messages[{i}]")
    if not messages:
        raise InvalidRequest("messages must have at least one message, got none", "messages")
    variables = dict(body.chat_template_kwargs or {})
    if body.thinking is not None:
        variables.setdefault("enable_thinking", body.thinking.type != "disabled")
    is_begun = messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls")
    return Conversation(
        messages,
        tools=_tools(body, served),
        add_generation_prompt=not is_begun,
        continue_final_message=is_begun,  # the answer goes on where the last message ends
        variables=variables,
    )


def _tools(body: CountTokensRequest, served: ServedModel) -> list[dict[str, Any]] | None:
    if not body.tools or (body.tool_choice is not None and body.tool_choice.type == "none"):
        return None
    tools = []
    for i, tool in enumerate(body.tools):
        if tool.input_schema is None or tool.type not in (None, "custom"):
            raise InvalidRequest(
                f"tools[{i}] must be a tool of the client's own, with an input_schema: this server has none",
                f"tools[{i}]",
            )
        function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
        tools.append({"type": "function", "function": function})
    if _forced_tools(body) is None:
        require_tool_calls(served)
    return tools


def _forced_tools(body: CountTokensRequest) -> ForcedTools | None:
    choice = body.tool_choice
    match None if choice is None else choice.type:
        case None | "auto" | "none":
            return None
        case "any":
            assert choice is not None
            return ForcedTools(None, not choice.disable_parallel_tool_use)
        case "tool" if choice is not None and choice.name:
            return ForcedTools(choice.name)
    raise InvalidParameter("tool_choice", choice and choice.type, "of type auto, none, any, or tool with a name")


def _format(body: CountTokensRequest) -> dict[str, Any] | None:
    config = (body.model_extra or {}).get("output_config")
    format = config.get("format") if isinstance(config, dict) else None
    if format is not None and not isinstance(format, dict):
        raise InvalidParameter(
            "output_config.format", format, 'an object such as {"type": "json_schema", "schema": {}}'
        )
    return format


def _chat_messages(message: MessageParam, where: str) -> list[dict[str, Any]]:
    """One message of this API may be several of a chat: each tool result is a message of its own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    results, texts, thoughts, calls = [], [], [], []
    for i, block in enumerate(message.content):
        here = f"{where}.content[{i}]"
        match block.type:
            case "text":
                texts.append(_required(block, "text", here))
            case "thinking":
                thoughts.append(_required(block, "thinking", here))
            case "redacted_thinking":
                continue
            case "tool_use":
                function = {"name": _required(block, "name", here), "arguments": json.dumps(block.input or {})}
                calls.append({"id": _required(block, "id", here), "type": "function", "function": function})
            case "tool_result":
                content = "" if block.content is None else _result_text(block.content, here)
                results.append(
                    {"role": "tool", "tool_call_id": _required(block, "tool_use_id", here), "content": content}
                )
            case _:
                raise InvalidRequest(
                    f"{here} has the type {block.type!r}: multimodal input is not supported by this model", here
                )
    if not (texts or thoughts or calls):
        return results or [{"role": message.role, "content": ""}]
    own: dict[str, Any] = {"role": message.role, "content": "\n".join(texts)}
    if thoughts:
        own["reasoning"] = own["reasoning_content"] = "\n".join(thoughts)
    if calls:
        own["tool_calls"] = calls
    return [*results, own]


def _required(block: ContentBlock, field: str, where: str) -> str:
    value = getattr(block, field)
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}.{field} is missing", f"{where}.{field}")
    return value


def _text_of(content: str | list[ContentBlock], where: str) -> str:
    if isinstance(content, str):
        return content
    for i, block in enumerate(content):
        if block.type != "text":
            raise InvalidRequest(f"{where}[{i}] must be a block of type 'text', got {block.type!r}", f"{where}[{i}]")
    return "\n".join(_required(block, "text", f"{where}[{i}]") for i, block in enumerate(content))


def _result_text(content: str | list[dict[str, Any]], where: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for i, block in enumerate(content):
        if block.get("type") != "text" or not isinstance(block.get("text"), str):
            raise InvalidRequest(
                f"{where}.content[{i}] must be a block of type 'text', got {block.get('type')!r}: multimodal input "
                "is not supported by this model",
                f"{where}.content[{i}]",
            )
        texts.append(block["text"])
    return "\n".join(texts)


# ---- answers


async def complete(job: MessagesJob, state: ServerState) -> dict[str, Any]:
    counts = TokenCounts(num_prompt=len(job.prompt.token_ids))
    with state.active():
        async with aclosing(job.generate()) as outputs:
            async for output in outputs:
                final = output
    counts.note(final)
    answer, blocks = job.new_answer(), Blocks()
    blocks.push(answer.take(final.outputs[0]))
    blocks.close()
    return {
        **_message(job, counts),
        "content": blocks.content(),
        **_ending(answer),
        "usage": {**_usage(counts), "output_tokens": counts.num_completion},
    }


async def events(job: MessagesJob, state: ServerState) -> AsyncGenerator[bytes, None]:
    """The events of a stream."""
    counts, answer, blocks = TokenCounts(num_prompt=len(job.prompt.token_ids)), job.new_answer(), Blocks()
    has_begun = False
    with state.active():
        async with aclosing(job.generate()) as outputs:
            async for output in outputs:
                counts.note(output)
                parts = []
                if not has_begun:
                    has_begun = True
                    message = {**_message(job, counts), "content": [], "stop_reason": None, "stop_sequence": None}
                    parts = [named({"type": "message_start", "message": message}), named({"type": "ping"})]
                parts += [named(event) for event in blocks.push(answer.take(output.outputs[0]))]
                yield b"".join(parts)
        parts = [named(event) for event in blocks.close()]
        usage = {**_usage(counts), "output_tokens": counts.num_completion}
        parts.append(named({"type": "message_delta", "delta": _ending(answer), "usage": usage}))
        yield b"".join([*parts, named({"type": "message_stop"})])


class Blocks:
    """Content blocks as they grow, one open at a time; what `push` and `close` return are a stream's events."""

    def __init__(self) -> None:
        self._blocks: list[dict[str, Any]] = []
        self._is_open = False

    def push(self, events: list[Event]) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        for event in events:
            match event:
                case Text(text):
                    made += self._open("text", {"type": "text", "text": ""})
                    made.append(self._delta("text", text, {"type": "text_delta", "text": text}))
                case Reasoning(text):
                    made += self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                    made.append(self._delta("thinking", text, {"type": "thinking_delta", "thinking": text}))
                case ToolCallStart(_, call_id, name):
                    made += self._open(None, {"type": "tool_use", "id": call_id, "name": name, "input": {}})
                    self._blocks[-1]["json"] = ""
                case ToolCallArguments(_, fragment):
                    made.append(self._delta("json", fragment, {"type": "input_json_delta", "partial_json": fragment}))
        return made

    def close(self) -> list[dict[str, Any]]:
        """Ends the last block. An answer of nothing is an empty text."""
        made = [] if self._blocks else self._open("text", {"type": "text", "text": ""})
        return made + self._stop()

    def content(self) -> list[dict[str, Any]]:
        """The blocks, whole."""
        for block in self._blocks:
            if "json" in block:
                block["input"] = _json_object(block.pop("json"))
        return self._blocks

    def _open(self, kind: str | None, block: dict[str, Any]) -> list[dict[str, Any]]:
        if self._is_open and kind is not None and self._blocks[-1]["type"] == kind:
            return []
        made = self._stop()
        self._blocks.append(dict(block))
        self._is_open = True
        return [*made, {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": block}]

    def _delta(self, field: str, text: str, delta: dict[str, Any]) -> dict[str, Any]:
        self._blocks[-1][field] = self._blocks[-1].get(field, "") + text
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _stop(self) -> list[dict[str, Any]]:
        if not self._is_open:
            return []
        self._is_open = False
        return [{"type": "content_block_stop", "index": len(self._blocks) - 1}]


def _message(job: MessagesJob, counts: TokenCounts) -> dict[str, Any]:
    return {
        "id": job.id,
        "type": "message",
        "role": "assistant",
        "model": job.model,
        "usage": {**_usage(counts), "output_tokens": counts.num_completion},
    }


def _usage(counts: TokenCounts) -> dict[str, Any]:
    """This API counts what came from the cache apart."""
    return {
        "input_tokens": counts.num_prompt - counts.num_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counts.num_cached,
    }


def _ending(answer: Answer) -> dict[str, Any]:
    if isinstance(answer.stop_reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": answer.stop_reason}
    return {"stop_reason": _STOP_REASONS.get(answer.finish_reason or "", answer.finish_reason), "stop_sequence": None}


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _error_event(error: Exception) -> bytes:
    return named(anthropic_error_body(error))
