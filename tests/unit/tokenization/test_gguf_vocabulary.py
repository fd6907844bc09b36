"""Tokenizers from GGUF metadata: against the sentencepiece library, and against BPE written out here."""

from __future__ import annotations

import io
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
import sentencepiece
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from octavo.errors import UnsupportedModel, WeightError
from octavo.tokenization.tokenizer import Tokenizer
from tests.tiny_gguf import sizes, write_gguf

TEXT = """In the beginning there was a list of 1234567 words, and nobody's list was longer; they'll say it isn't so.
def area(width, height=10):\n\treturn width * height  # 3.14159\n\n\n    if x == y:\n        print("naïve café")
Straße, Ωmega, привет мир, 日本語のテキスト, emoji 🤗 and <b>bold</b> words. HTTPServer OldMacDonald's IT'S 12,000.50
"""
SAMPLES = [
    "", " ", "  ", "\n\n \t x", "a" * 37, "Hello world", "  leading and trailing  ", "1234567890 12.5e-7",
    "e\u0301 \u00e9", "日本語 한국어 العربية", "👩‍👩‍👧 🤗🤗", "\r\n\r\n", "x\u0000y\ufffd",
    "IT'S they'll", "def f(x):\n        return x", "ababababa",
    "<b>bold</b><b>", "     <b>  x", "_-_-_ ... ???",
]  # fmt: skip


def samples(count: int = 300) -> list[str]:
    """Fixed oddities, slices of the text the vocabularies are trained on, and random characters."""
    chance = random.Random(3)
    slices = []
    for _ in range(count):
        start = chance.randrange(len(TEXT))
        slices.append(TEXT[start : start + chance.randrange(1, 60)])
    letters = "ab  1\nreпий日é'.z<>"
    return SAMPLES + slices + ["".join(chance.choices(letters, k=chance.randrange(1, 25))) for _ in range(count)]


def tokenizer_of(path: Path, metadata: dict[str, Any]) -> Tokenizer:
    named = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return Tokenizer.from_path(write_gguf(path / "m.gguf", "llama", sizes("llama") | named))


# --- SentencePiece ---


def sentencepiece_model(**settings: Any) -> sentencepiece.SentencePieceProcessor:
    stored = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines() * 3),
        model_writer=stored,
        model_type="bpe",
        vocab_size=512,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=stored.getvalue())


def metadata_of(model: sentencepiece.SentencePieceProcessor, user_defined: list[str]) -> dict[str, Any]:
    tokens, scores, kinds = [], [], []
    for i in range(model.vocab_size()):
        piece = model.id_to_piece(i)
        kind = 2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
        if piece in user_defined:
            kind, piece = 4, piece.replace("▁", " ")  # as the converter writes them
        tokens.append(piece)
        scores.append(-1000.0 if kind in (3, 4) else float(model.get_score(i)))
        kinds.append(kind)
    return {
        "model": "llama",
        "tokens": tokens,
        "scores": scores,
        "token_type": kinds,
        "unknown_token_id": model.unk_id(),
        "bos_token_id": model.bos_id(),
        "eos_token_id": model.eos_id(),
    }


@pytest.mark.parametrize("space_prefix", [False, True])
def test_sentencepiece_agrees_with_its_library(tmp_path: Path, space_prefix: bool) -> None:
    user_defined = ["<b>", "▁▁", "▁▁▁▁", "\n"]
    model = sentencepiece_model(user_defined_symbols=user_defined, add_dummy_prefix=space_prefix)
    metadata = metadata_of(model, user_defined) | {"add_space_prefix": space_prefix, "add_bos_token": False}
    tokenizer = tokenizer_of(tmp_path, metadata)
    for text in samples():
        if space_prefix and (text[:1] in " \n" or "<b>" in text or "  " in text or "\n" in text):
            continue  # cut at user-defined pieces, every stretch of text would get a prefix of its own
        assert tokenizer.encode(text) == model.encode(text), text
        assert tokenizer.decode(model.encode(text)) == text, text


def test_scores_rank_merges_not_the_order_of_ids(tmp_path: Path) -> None:
    tokens = ["<unk>", "a", "b", "c", "bc", "ab"]
    metadata = {"model": "llama", "tokens": tokens, "token_type": [2, 1, 1, 1, 1, 1], "add_bos_token": False}
    metadata |= {"add_space_prefix": False}
    later = tokenizer_of(tmp_path, metadata | {"scores": [0.0, 0.0, 0.0, 0.0, -2.0, -1.0]})
    assert later.encode("abc") == [5, 3]
    earlier = tokenizer_of(tmp_path, metadata | {"scores": [0.0, 0.0, 0.0, 0.0, -1.0, -2.0]})
    assert earlier.encode("abc") == [1, 4]


def test_control_tokens_are_parsed_and_silent_and_bos_is_added(tmp_path: Path) -> None:
    metadata = metadata_of(sentencepiece_model(), []) | {"add_space_prefix": False}
    tokenizer = tokenizer_of(tmp_path, metadata)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.special_ids == {1, 2}
    assert tokenizer.all_special_tokens == ["<s>", "</s>"]
    ids = tokenizer.encode("a</s>b")
    assert (ids[0], ids[2]) == (1, 2) and len(ids) == 4
    assert tokenizer.encode("a</s>b", add_special_tokens=False) == ids[1:]
    assert (tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=False)) == ("ab", "<s>a</s>b")
    assert tokenizer.vocab_size == len(metadata["tokens"])
    with_eos = tokenizer_of(tmp_path, metadata | {"add_eos_token": True, "add_bos_token": False})
    assert with_eos.encode("a") == [ids[1], 2]


# --- byte-level BPE ---

CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
GPT2 = rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
EDGE = r"[^\r\n\p{L}\p{N}]?"
# pre -> stages of splitting, one after the other
SPLITS = {
    "gpt-2": [GPT2],
    "default": [GPT2],
    "smollm": [r"\p{Nd}|\p{Nl}|\p{No}|[^\p{N}]+", GPT2],
    "llama-bpe": [rf"(?i:{CONTRACTIONS})|{WORDS}|\p{{N}}{{1,3}}|{REST}"],
    "qwen2": [rf"(?i:{CONTRACTIONS})|{WORDS}|\p{{N}}|{REST}"],
    "tekken": [
        rf"{EDGE}{UPPER}*{LOWER}+|{EDGE}{UPPER}+{LOWER}*|\p{{N}}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
}


def byte_letters() -> dict[int, str]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for code points from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


LETTERS = byte_letters()


def by_hand(text: str, split: str, vocabulary: dict[str, int], ranks: dict[tuple[str, str], int]) -> list[int]:
    parts = [text]
    for stage in SPLITS[split]:
        parts = [found for part in parts for found in regex.findall(stage, part)]
    assert "".join(parts) == text
    ids = []
    for part in parts:
        word = [LETTERS[byte] for byte in part.encode()]
        if split in ("llama-bpe", "tekken") and "".join(word) in vocabulary:
            word = ["".join(word)]
        while pairs := [(ranks[pair], i) for i, pair in enumerate(pairwise(word)) if pair in ranks]:
            _, i = min(pairs)
            word[i : i + 2] = [word[i] + word[i + 1]]
        ids += [vocabulary[token] for token in word]
    return ids


@pytest.fixture(scope="module")
def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of a small byte-level BPE, with a few whole words that no merge leads to."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet))
    stored = json.loads(trained.to_str())["model"]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in stored["merges"]]
    tokens = sorted(stored["vocab"], key=stored["vocab"].__getitem__)
    tokens += [word for word in ("bold", "Ġbold", "OldMac", "12,000") if word not in tokens]
    return tokens, merges


@pytest.mark.parametrize("split", sorted(SPLITS))
def test_byte_level_bpe_agrees_with_bpe_by_hand(
    tmp_path: Path, split: str, vocabulary: tuple[list[str], list[str]]
) -> None:
    tokens, merges = vocabulary
    metadata = {"model": "gpt2", "pre": split, "tokens": tokens, "merges": merges, "add_bos_token": False}
    tokenizer = tokenizer_of(tmp_path, metadata)
    ids_of = {token: i for i, token in enumerate(tokens)}
    ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(merges)}
    for text in samples():
        expected = by_hand(text, split, ids_of, ranks)
        if split == "qwen2" and "e\u0301" in text:
            continue  # composed first: test_qwen_composes_unicode
        assert tokenizer.encode(text) == expected, text
        assert tokenizer.decode(expected) == text


def test_qwen_composes_unicode(tmp_path: Path, vocabulary: tuple[list[str], list[str]]) -> None:
    tokens, merges = vocabulary
    metadata = {"model": "gpt2", "tokens": tokens, "merges": merges}
    qwen = tokenizer_of(tmp_path, metadata | {"pre": "qwen2"})
    assert qwen.encode("e\u0301") == qwen.encode("\u00e9")
    other = tokenizer_of(tmp_path, metadata | {"pre": "gpt-2"})
    assert other.encode("e\u0301") != other.encode("\u00e9")


def test_byte_level_control_tokens_and_bos(tmp_path: Path, vocabulary: tuple[list[str], list[str]]) -> None:
    tokens, merges = vocabulary
    tokens = [*tokens, "<|begin|>", "<|end|>", "<tool>"]
    kinds = [1] * (len(tokens) - 3) + [3, 3, 4]
    begin, end, tool = range(len(tokens) - 3, len(tokens))
    metadata = {"model": "gpt2", "pre": "llama-bpe", "tokens": tokens, "token_type": kinds, "merges": merges}
    metadata |= {"bos_token_id": begin, "eos_token_id": end}
    tokenizer = tokenizer_of(tmp_path, metadata)
    x = tokens.index("x")
    assert tokenizer.encode("x<|end|>x<tool>") == [begin, x, end, x, tool]  # this split's models want BOS
    assert tokenizer.decode([begin, x, end, tool]) == "x<tool>"
    assert (tokenizer.special_ids, tokenizer.pad_token_id) == ({begin, end}, None)
    assert tokenizer_of(tmp_path, metadata | {"add_bos_token": False}).encode("x") == [x]
    assert tokenizer_of(tmp_path, metadata | {"pre": "gpt-2"}).encode("x") == [x]


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({}, UnsupportedModel, "has no tokenizer"),
        ({"model": "t5"}, UnsupportedModel, "tokenizer of the kind 't5'; octavo reads 'gpt2' and 'llama'"),
        ({"model": "gpt2"}, WeightError, r"no tokenizer\.ggml\.tokens"),
        ({"model": "gpt2", "tokens": ["a"]}, WeightError, r"no tokenizer\.ggml\.merges"),
        (
            {"model": "gpt2", "pre": "poro", "tokens": ["a", "b", "ab"], "merges": ["a b"]},
            UnsupportedModel,
            "splits text by 'poro' .* octavo knows command-r, .*qwen2",
        ),
        ({"model": "llama", "tokens": ["a", "b"], "scores": [0.0]}, WeightError, "scores has 1 entries for 2 tokens"),
        ({"model": "gpt2", "tokens": ["a"], "token_type": [1, 1]}, WeightError, "token_type has 2 entries for 1"),
    ],
)
def test_refusals(tmp_path: Path, metadata: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tokenizer_of(tmp_path, metadata)
