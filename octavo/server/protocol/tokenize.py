"""POST /tokenize and /detokenize."""

from __future__ import annotations

from octavo.server.protocol.chat import ChatMessage, TemplateFields
from octavo.server.protocol.fields import Closed, Open, Tool


class TokenizeCompletionRequest(Open):
    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool | None = False


class TokenizeChatRequest(TemplateFields):
    model: str | None = None
    messages: list[ChatMessage]
    return_token_strs: bool | None = False
    tools: list[Tool] | None = None


class TokenizeResponse(Closed):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Open):
    model: str | None = None
    tokens: list[int]


class DetokenizeResponse(Closed):
    prompt: str
