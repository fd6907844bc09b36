"""Tokens that a model wants around every text."""

from __future__ import annotations

import tokenizers
from tokenizers import processors


def put_around(backend: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> None:
    """Make `encode` add these tokens, which the vocabulary has, before and after a text."""
    around = [token for token in (bos, eos) if token is not None]
    if around:
        single = [token for token in (bos, "$A", eos) if token is not None]
        backend.post_processor = processors.TemplateProcessing(
            single=single,
            pair=[*single, *(token for token in (bos, "$B", eos) if token is not None)],
            special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(around)],
        )
