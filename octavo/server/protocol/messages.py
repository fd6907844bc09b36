"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic's API has them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from octavo.server.protocol.fields import INT64, Closed, Open, described


class ContentBlock(Open):
    """Of type text, thinking, redacted_thinking, tool_use or tool_result."""

    type: str
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[dict[str, Any]] | None = None
    is_error: bool | None = None


class MessageParam(Open):
    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock]


class ToolParam(Open):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class ToolChoice(Open):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Open):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(
        None, ge=1024, description="Advice where thoughts cannot be told from the answer."
    )


class CountTokensRequest(Open):
    model: str
    messages: list[MessageParam] = described(..., minItems=1)
    system: str | list[ContentBlock] | None = None
    thinking: Thinking | None = None
    tool_choice: ToolChoice | None = None
    tools: list[ToolParam] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class MessagesRequest(CountTokensRequest):
    max_tokens: int = described(..., "Less where the context has less left.", minimum=1, maximum=INT64 - 1)
    metadata: dict[str, Any] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = False
    temperature: float | None = described(minimum=0, maximum=2)
    top_k: int | None = described(minimum=-1, maximum=INT64 - 1)
    top_p: float | None = described(exclusiveMinimum=0, maximum=1)
    cache_salt: str | None = Field(None, min_length=1, max_length=1024)


class AnswerBlock(Closed):
    """text, thinking or tool_use."""

    type: Literal["text", "thinking", "tool_use"]
    text: str | None = None
    citations: None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


class MessagesUsage(Closed):
    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None


class MessagesResponse(Closed):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    content: list[AnswerBlock]
    model: str
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: MessagesUsage


class CountTokensResponse(Closed):
    input_tokens: int


class MessagesError(Closed):
    type: str
    message: str


class MessagesErrorResponse(Closed):
    type: Literal["error"]
    error: MessagesError
