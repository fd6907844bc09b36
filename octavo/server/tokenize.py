"""POST /tokenize and /detokenize."""

from __future__ import annotations

from fastapi import Request

from octavo.engine.inputs import check_token_ids
from octavo.errors import InvalidRequest
from octavo.server.prompts import beside_if_long, conversation_from, prepare_conversation
from octavo.server.protocol.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeChatRequest,
    TokenizeCompletionRequest,
    TokenizeResponse,
)
from octavo.server.routing import REFUSALS, make_router
from octavo.server.state import served_model

router = make_router("tokens")


@router.post("/tokenize", responses=REFUSALS)
async def tokenize(body: TokenizeCompletionRequest | TokenizeChatRequest, request: Request) -> TokenizeResponse:
    """The token ids of a text, or of a conversation as the model's template writes it."""
    served = served_model(request)
    served.name_for(body.model)
    if isinstance(body, TokenizeCompletionRequest):
        prompt, special = body.prompt, body.add_special_tokens
        token_ids = await beside_if_long(len(prompt), lambda: served.engine.inputs.encode(prompt, special))
    else:
        conversation = conversation_from(body, body.messages)
        if body.tools:
            conversation.tools = [tool.model_dump(exclude_unset=True) for tool in body.tools]
        token_ids = (await prepare_conversation(served, conversation)).token_ids
    strings = None
    if body.return_token_strs:
        tokenizer = served.engine.get_tokenizer()
        strings = [tokenizer.convert_id_to_token(token_id) for token_id in token_ids]
    return TokenizeResponse(
        count=len(token_ids), max_model_len=served.max_model_len, tokens=token_ids, token_strs=strings
    )


@router.post("/detokenize", responses=REFUSALS)
async def detokenize(body: DetokenizeRequest, request: Request) -> DetokenizeResponse:
    """The text of token ids."""
    served = served_model(request)
    served.name_for(body.model)
    tokenizer = served.engine.get_tokenizer()
    if not body.tokens:
        return DetokenizeResponse(prompt="")
    try:
        token_ids = check_token_ids(body.tokens, served.engine.inputs.limits.vocab_size)
    except InvalidRequest as error:
        raise InvalidRequest(str(error).replace("prompt_token_ids", "tokens"), "tokens") from None
    return DetokenizeResponse(
        prompt=await beside_if_long(len(token_ids), lambda: tokenizer.decode(token_ids, skip_special_tokens=False))
    )
