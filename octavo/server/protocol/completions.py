"""POST /v1/completions: the request, the response, and the chunks of a stream."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from octavo.core.params import MAX_COMPLETIONS
from octavo.server.protocol.chat import ResponseFormat
from octavo.server.protocol.fields import (
    INT64,
    Closed,
    PromptFields,
    PromptLogprobFields,
    PromptLogprobs,
    RequestFields,
    SamplingFields,
    StreamOptions,
    Usage,
    described,
)


class CompletionRequest(RequestFields, SamplingFields, PromptFields, PromptLogprobFields):
    prompt: str | list[str] | list[int] | list[list[int]] = described(
        ..., "Text or token ids, of one prompt or of several.", minLength=1, minItems=1
    )
    n: int | None = described(minimum=1, maximum=MAX_COMPLETIONS)
    max_tokens: int | None = described(
        16, "null: as many as the model's context allows. 0: with echo only.", minimum=0, maximum=INT64 - 1
    )
    logprobs: int | None = described(None, "The most likely N tokens at each position.", minimum=-1)
    echo: bool | None = Field(
        False, description="Begin the answer with the prompt, and logprobs with those of its tokens."
    )
    suffix: str | None = Field(None, description="Not supported yet.")
    stream_options: StreamOptions | None = None
    add_special_tokens: bool = True
    response_format: ResponseFormat | None = None


class CompletionLogprobs(Closed):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Closed):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_id_logprobs: list[list[float]] | None = None
    prompt_token_ids: list[int] | None = None


class CompletionResponse(Closed):
    """Of a stream, each chunk has this form too."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    service_tier: str | None = None
    system_fingerprint: str | None = None
    usage: Usage | None = None
    kv_transfer_params: None = None
