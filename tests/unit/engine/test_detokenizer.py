"""Streamed text is the text, and never shows half a character."""

from __future__ import annotations

import random

import pytest

from octavo.engine.detokenizer import BytewiseDetokenizer, TokenText, WindowDetokenizer
from octavo.tokenization.tokenizer import Tokenizer
from tests.unit.engine.scripted import (
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    word_piece_tokenizer,
)

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def stream(text: TokenText, prompt: list[int], token_ids: list[int], **settings: bool) -> list[str]:
    detokenizer = text.start(prompt, **settings)
    return [*(detokenizer.push([token_id]) for token_id in token_ids), detokenizer.flush()]


def test_which_tokenizers_are_bytewise() -> None:
    assert isinstance(TokenText(byte_level_tokenizer()).start([1]), BytewiseDetokenizer)
    assert isinstance(TokenText(byte_fallback_tokenizer()).start([1]), BytewiseDetokenizer)
    assert isinstance(TokenText(word_piece_tokenizer()).start([1]), WindowDetokenizer)


@pytest.mark.parametrize("skip", [True, False])
def test_byte_level_stream_is_the_full_decode_even_of_broken_bytes(skip: bool) -> None:
    tokenizer = byte_level_tokenizer()
    text = TokenText(tokenizer)
    draw = random.Random(0)
    for _ in range(300):
        ids = [draw.randrange(tokenizer.vocab_size) for _ in range(draw.randint(1, 30))]
        pieces = stream(text, tokenizer.encode("hi"), ids, skip_special_tokens=skip)
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), byte_fallback_tokenizer()])
def test_half_a_character_is_never_shown(tokenizer: Tokenizer) -> None:
    text = "naïve 你好 🙂 the cat"
    if tokenizer is byte_fallback_tokenizer():
        ids = [tokenizer.backend.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
    else:
        ids = [tokenizer.backend.token_to_id(c) for b in text.encode() for c in [byte_symbol(b)]]
    pieces = stream(TokenText(tokenizer), [1], ids)
    assert "".join(pieces) == text
    assert not any(REPLACEMENT in piece for piece in pieces)
    assert pieces[2:4] == ["", "ï"]  # two bytes, shown with the second


def byte_symbol(byte: int) -> str:
    from octavo.tokenization.byte_steps import _BYTE_OF_CHARACTER

    return next(character for character, value in _BYTE_OF_CHARACTER.items() if value == byte)


def test_an_unfinished_character_at_the_end_is_flushed() -> None:
    tokenizer = byte_fallback_tokenizer()
    ids = [tokenizer.backend.token_to_id(token) for token in ("▁the", "<0xE4>", "<0xBD>")]
    assert stream(TokenText(tokenizer), [1], ids) == [" the", "", "", REPLACEMENT]


def test_a_prompt_that_ends_inside_a_character() -> None:
    tokenizer = byte_fallback_tokenizer()
    first, second, third = (tokenizer.backend.token_to_id(token) for token in ("<0xE4>", "<0xBD>", "<0xA0>"))
    assert stream(TokenText(tokenizer), [1, first], [second, third]) == ["", "你", ""]


def test_byte_fallback_stream_is_the_decode_of_prompt_and_output_less_the_prompt() -> None:
    tokenizer = byte_fallback_tokenizer()
    text = TokenText(tokenizer)
    draw = random.Random(1)
    words = [i for i in range(tokenizer.vocab_size) if not tokenizer.backend.id_to_token(i).startswith("<0x")]
    characters = [[tokenizer.backend.token_to_id(f"<0x{b:02X}>") for b in c.encode()] for c in "é你🙂z"]
    prompt = tokenizer.encode("the")
    for _ in range(300):
        ids = [i for _ in range(12) for i in (draw.choice(characters) if draw.random() < 0.4 else [draw.choice(words)])]
        whole = tokenizer.decode([*prompt, *ids])
        assert "".join(stream(text, prompt, ids)) == whole[len(tokenizer.decode(prompt)) :]


def test_word_piece_stream_is_the_decode_of_prompt_and_output_less_the_prompt() -> None:
    tokenizer = word_piece_tokenizer()
    text = TokenText(tokenizer)
    draw = random.Random(2)
    for skip in (True, False):
        for _ in range(200):
            prompt = [draw.randrange(2, tokenizer.vocab_size) for _ in range(draw.randint(1, 9))]
            ids = [draw.randrange(tokenizer.vocab_size) for _ in range(20)]
            whole = tokenizer.decode([*prompt, *ids], skip_special_tokens=skip)
            expected = whole[len(tokenizer.decode(prompt, skip_special_tokens=skip)) :]
            assert "".join(stream(text, prompt, ids, skip_special_tokens=skip)) == expected


def test_a_window_does_not_grow_with_silent_tokens() -> None:
    text = TokenText(word_piece_tokenizer())
    detokenizer = text.start([2, 3])
    assert isinstance(detokenizer, WindowDetokenizer)
    assert detokenizer.push([1] * 500) == ""
    assert len(detokenizer._ids) < 100
    assert detokenizer.push([3]) == " cat"


def test_special_tokens_close_together_without_spaces() -> None:
    text = TokenText(word_piece_tokenizer())
    apart = stream(text, [2], [1, 1], skip_special_tokens=False, spaces_between_special_tokens=True)
    close = stream(text, [2], [1, 1], skip_special_tokens=False, spaces_between_special_tokens=False)
    assert "".join(apart) == " [SEP] [SEP]" and "".join(close) == " [SEP][SEP]"


def test_special_tokens_are_silent_only_if_asked() -> None:
    tokenizer = byte_level_tokenizer()
    text = TokenText(tokenizer)
    ids = [*tokenizer.encode("a"), tokenizer.backend.token_to_id("<tool>"), *tokenizer.encode("b")]
    assert "".join(stream(text, [5], ids, skip_special_tokens=True)) == "ab"
    assert "".join(stream(text, [5], ids, skip_special_tokens=False)) == "a<tool>b"
    assert text.text_of(ids[1]) == "<tool>"


def test_ids_beyond_the_vocabulary_have_no_text() -> None:
    assert stream(TokenText(byte_level_tokenizer()), [5], [10**6]) == ["", ""]
