"""POST /v1/responses: the request and the response. The events of a stream carry parts of the response."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from octavo.server.protocol.fields import INT64, Closed, Open, RequestFields, SamplingFields, described


class InputPart(Open):
    """Of type input_text, output_text, text, refusal or reasoning_text."""

    type: str
    text: str | None = None


class InputItem(Open):
    """A message (the type when there is none), function_call, function_call_output or reasoning."""

    type: str | None = None
    role: str | None = None
    content: str | list[InputPart] | None = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None
    summary: list[dict[str, Any]] | None = None


class ResponseTool(Open):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ReasoningOptions(Open):
    effort: str | None = None
    summary: str | None = None


class TextFormat(Open):
    """{"type": "json_schema", "name": ..., "schema": {...}}, or of type text or json_object."""

    type: str = "text"


class TextOptions(Open):
    format: TextFormat | None = None
    verbosity: str | None = None


class ResponsesRequest(RequestFields, SamplingFields):
    input: str | list[InputItem] = described(..., minItems=1)
    instructions: str | None = None
    max_output_tokens: int | None = described(minimum=1, maximum=INT64 - 1)
    max_tool_calls: int | None = None
    metadata: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = True
    previous_response_id: str | None = None
    reasoning: ReasoningOptions | None = None
    include_reasoning: bool = True
    include: list[str] | None = None
    service_tier: str | None = None
    store: bool | None = Field(
        True, description="Keep it for retrieval and previous_response_id, as long as memory is."
    )
    background: bool | None = False
    text: TextOptions | None = None
    tool_choice: str | dict[str, Any] | None = "auto"
    tools: list[ResponseTool] | None = None
    top_logprobs: int | None = described(0, minimum=0)
    truncation: Literal["auto", "disabled"] | None = "disabled"
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class InputTokensDetails(Closed):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Closed):
    reasoning_tokens: int


class ResponseUsage(Closed):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseObject(Closed):
    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None = None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: dict[str, Any] | None = None
    incomplete_details: dict[str, Any] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, Any] | None = None
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    reasoning: dict[str, Any] | None = None
    safety_identifier: str | None = None
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str
    usage: ResponseUsage | None = None
    user: str | None = None


class DeletedResponse(Closed):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True
