"""Text, token ids and conversations → the token ids of a prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from octavo.engine.inputs import check_token_ids, truncated
from octavo.errors import InvalidParameter, InvalidRequest
from octavo.server.output_parser import prompt_ends_in_reasoning
from octavo.server.protocol.chat import ChatMessage, TemplateFields
from octavo.server.protocol.fields import PromptFields
from octavo.server.state import ServedModel

# Characters above which a prompt is tokenised on another thread, so that streams go on meanwhile.
_LONG = 20_000
# Variables of a template that are the request's own fields, or ours.
_RESERVED = frozenset(
    ("self", "messages", "tools", "tokenizer", "template", "chat_template")
    + ("add_generation_prompt", "continue_final_message")
)

Result = TypeVar("Result")


@dataclass
class PreparedPrompt:
    token_ids: list[int]
    text: str | None = None
    ends_in_reasoning: bool = False  # the template, or the last message, has begun reasoning

    def for_engine(self, cache_salt: str | None = None) -> dict[str, Any]:
        prompt: dict[str, Any] = {"prompt_token_ids": self.token_ids}
        if self.text is not None:
            prompt["prompt"] = self.text
        if cache_salt is not None:
            prompt["cache_salt"] = cache_salt
        return prompt


@dataclass
class Conversation:
    """Messages in the form that chat templates take, whatever API they came by."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template: str | None = None
    variables: dict[str, Any] = field(default_factory=dict)  # further ones of the template


async def prepare_conversation(served: ServedModel, conversation: Conversation) -> PreparedPrompt:
    """Raises InvalidRequest."""
    size = sum(len(str(message.get("content") or "")) for message in conversation.messages)
    return await beside_if_long(size, lambda: _prepare_conversation(served, conversation))


def _prepare_conversation(served: ServedModel, conversation: Conversation) -> PreparedPrompt:
    if conversation.chat_template is not None and not served.options.trust_request_chat_template:
        raise InvalidRequest(
            "chat_template is a program, and this server runs none that requests bring (--trust-request-chat-template)",
            "chat_template",
        )
    for name in conversation.variables:
        if name in _RESERVED:
            raise InvalidRequest(
                f"chat_template_kwargs must not have {name!r}: it is a field of its own", "chat_template_kwargs"
            )
    inputs = served.engine.inputs
    text = inputs.render(
        conversation.messages,
        conversation.chat_template,
        tools=conversation.tools or None,
        add_generation_prompt=conversation.add_generation_prompt,
        continue_final_message=conversation.continue_final_message,
        **conversation.variables,
    )
    token_ids = inputs.encode(text, conversation.add_special_tokens)
    return PreparedPrompt(token_ids, text, prompt_ends_in_reasoning(served.reasoning_parser, text))


def conversation_from(body: TemplateFields, messages: list[ChatMessage], **variables: Any) -> Conversation:
    return Conversation(
        [message_dict(message, f"messages[{i}]") for i, message in enumerate(messages)],
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        add_special_tokens=body.add_special_tokens,
        chat_template=body.chat_template,
        variables={
            **({} if body.documents is None else {"documents": body.documents}),
            **{name: value for name, value in variables.items() if value is not None},
            **(body.chat_template_kwargs or {}),
        },
    )


def message_dict(message: ChatMessage, where: str) -> dict[str, Any]:
    fields = {name: value for name, value in message.model_dump(exclude_unset=True).items() if value is not None}
    content = fields.get("content")
    if isinstance(content, list):
        for i, part in enumerate(content):
            refuse_media(part, f"{where}.content[{i}]")
    elif content is None and fields["role"] == "assistant":
        fields["content"] = ""
    reasoning = fields.get("reasoning", fields.get("reasoning_content"))
    if reasoning is not None:  # templates know the older name
        fields["reasoning"] = fields["reasoning_content"] = reasoning
    return fields


def refuse_media(part: Mapping[str, Any], where: str) -> None:
    """Nothing that a request names is ever fetched or opened."""
    kind = part.get("type")
    if kind != "text":
        raise InvalidRequest(
            f"{where} must be a part of type 'text', got {kind!r}: multimodal input is not supported by this model",
            where,
        )


async def prepare_text(served: ServedModel, text: str, add_special_tokens: bool = True) -> PreparedPrompt:
    if not text:
        raise InvalidRequest("prompt must not be empty", "prompt")
    inputs = served.engine.inputs
    token_ids = await beside_if_long(len(text), lambda: inputs.encode(text, add_special_tokens))
    return PreparedPrompt(token_ids, text)


def prepare_ids(served: ServedModel, token_ids: list[int]) -> PreparedPrompt:
    return PreparedPrompt(check_token_ids(token_ids, served.engine.inputs.limits.vocab_size))


def truncate(prompt: PreparedPrompt, body: PromptFields, served: ServedModel, max_tokens: int | None) -> None:
    """Drops what truncate_prompt_tokens says. The text of a truncated prompt is its tokens'."""
    keep = body.truncate_prompt_tokens
    if keep is None:
        return
    if keep == 0:
        raise InvalidParameter("truncate_prompt_tokens", keep, "at least 1, or -1 for as many as the model takes")
    kept = truncated(prompt.token_ids, keep, body.truncation_side, served.max_model_len, max_tokens)
    if len(kept) < len(prompt.token_ids):
        prompt.token_ids = kept
        if prompt.text is not None:
            prompt.text = served.engine.get_tokenizer().decode(kept, skip_special_tokens=False)


async def beside_if_long(num_characters: int, work: Callable[[], Result]) -> Result:
    return await asyncio.to_thread(work) if num_characters > _LONG else work()
