"""POST /v1/chat/completions: the request, the response, and the chunks of a stream."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from octavo.core.params import MAX_COMPLETIONS
from octavo.server.protocol.fields import (
    INT64,
    Closed,
    Open,
    PromptFields,
    PromptLogprobFields,
    PromptLogprobs,
    RequestFields,
    SamplingFields,
    StreamOptions,
    Tool,
    ToolCall,
    Usage,
    described,
)


class ContentPart(Open):
    """A part of a message. Only type "text" can be served."""

    type: str = described(..., examples=["text"])
    text: str | None = None


class ChatMessage(Open):
    role: str = described(..., minLength=1)
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None


class TemplateFields(Open):
    """How messages become a prompt."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = Field(False, description="Templates write the special tokens themselves.")
    documents: list[dict[str, Any]] | None = None
    chat_template: str | None = Field(None, description="Only with --trust-request-chat-template.")
    chat_template_kwargs: dict[str, Any] | None = None


class ResponseFormat(Open):
    """{"type": "json_schema", "json_schema": {"schema": {...}}}, or of type text, json_object or structural_tag (which
    has `structures` and `triggers`, or `format`)."""

    type: str
    json_schema: dict[str, Any] | None = None


class ChatCompletionRequest(RequestFields, SamplingFields, PromptFields, PromptLogprobFields, TemplateFields):
    messages: list[ChatMessage] = described(..., minItems=1)
    n: int | None = described(minimum=1, maximum=MAX_COMPLETIONS)
    max_completion_tokens: int | None = described(minimum=1, maximum=INT64 - 1)
    max_tokens: int | None = described(None, "Older name of max_completion_tokens.", minimum=1, maximum=INT64 - 1)
    logprobs: bool | None = False
    top_logprobs: int | None = described(0, minimum=-1)
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | str | None = Field(
        None, description='none, auto, required or {"type": "function", "function": {"name": ...}}.'
    )
    parallel_tool_calls: bool | None = True
    reasoning_effort: str | None = None
    include_reasoning: bool = True
    echo: bool = Field(False, description="Begin the answer with the last message, where it is the answerer's.")
    return_prompt_text: bool | None = None


class ChatTopLogprob(Closed):
    token: str
    logprob: float
    bytes: list[int] | None = None


class ChatLogprob(ChatTopLogprob):
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(Closed):
    content: list[ChatLogprob] | None = None


class AnswerMessage(Closed):
    role: str
    content: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[ToolCall] | None = None
    reasoning: str | None = None


class ChatChoice(Closed):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatCompletionResponse(Closed):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    service_tier: str | None = None
    system_fingerprint: str | None = None
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_id_logprobs: list[list[float]] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_text: str | None = None
    kv_transfer_params: None = None


class DeltaFunction(Closed):
    name: str | None = None
    arguments: str | None = None


class DeltaToolCall(Closed):
    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: DeltaFunction


class Delta(Closed):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[DeltaToolCall] | None = None


class ChunkChoice(Closed):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatCompletionChunk(Closed):
    """Streams are encoded without this class; it is their description."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = None
