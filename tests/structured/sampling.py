"""The cheapest random model there is: any token that the mask allows, with a leaning towards the end."""

from __future__ import annotations

import random
from functools import cache

import numpy as np

from octavo.structured.grammar import Grammar, Matcher
from octavo.structured.vocabulary import Vocabulary
from tests.unit.engine.scripted import byte_level_tokenizer

CLOSERS = tuple(b'"}]>')


@cache
def tiny_vocabulary() -> Vocabulary:
    """Some 330 tokens of bytes, among them pieces of JSON. A few logits have no token."""
    tokenizer = byte_level_tokenizer()
    assert tokenizer.eos_token_id is not None
    return Vocabulary.of(tokenizer, tokenizer.vocab_size + 7, [tokenizer.eos_token_id])


def allowed_ids(matcher: Matcher, vocabulary: Vocabulary) -> list[int]:
    bitmask = np.full((2, vocabulary.num_words), -1, dtype=np.int32)
    matcher.fill(bitmask, 1)
    assert (bitmask[0] == -1).all(), "wrote into another row"
    return np.flatnonzero(np.unpackbits(bitmask[1].view(np.uint8), bitorder="little")).tolist()


def sample(
    grammar: Grammar, vocabulary: Vocabulary, chance: random.Random, leaning: str = "", max_tokens: int = 400
) -> tuple[list[int], bytes] | None:
    """One output's tokens and bytes; None if it does not end. `leaning` are characters that help it to."""
    matcher = grammar.matcher()
    (end,) = vocabulary.eos_token_ids
    token_ids: list[int] = []
    patience = chance.choice((4, 16, 40))
    likely = [i for byte in leaning.encode() for i in vocabulary.ids_of.get(bytes([byte]), ())]
    quote = vocabulary.ids_of[b'"'][0]
    closers = [i for byte in CLOSERS for i in vocabulary.ids_of.get(bytes([byte]), ())]
    for step in range(max_tokens):
        allowed = allowed_ids(matcher, vocabulary)
        assert allowed, f"nothing goes on after {token_ids}"
        if end in allowed and (step > patience or chance.random() < 0.3 or allowed == [end]):
            return token_ids, b"".join(vocabulary.pieces[i] for i in token_ids)
        allowed = [i for i in allowed if i != end]
        closing = [i for i in closers if i in allowed]
        wanted = [i for i in likely if i in allowed] if step > patience and quote not in closing else []
        if wanted and chance.random() < 0.8:
            token_id = chance.choice(wanted)
        elif closing and chance.random() < (0.9 if step > patience else 0.15):
            token_id = chance.choice(closing)
        else:
            printable = [i for i in allowed if vocabulary.pieces[i].strip()] or allowed
            token_id = chance.choice(printable if chance.random() < 0.95 else allowed)
        assert vocabulary.pieces[token_id], "a token without text"
        assert matcher.accept([token_id])
        token_ids.append(token_id)
    return None
