"""Builds a tokenizer from the `tokenizer.ggml.*` metadata of a GGUF file.

Two kinds: "gpt2", byte-level BPE with its merges, where `pre` names how text is split first; and "llama",
SentencePiece BPE, where the scores of the pieces stand for merges.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from octavo.config.gguf_header import GgufHeader, read_header
from octavo.errors import UnsupportedModel, WeightError
from octavo.tokenization.special_tokens import put_around

_SPACE = "▁"  # SentencePiece's mark for a space


class _Kind(IntEnum):
    """tokenizer.ggml.token_type"""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# How the published tokenizer.json of each family splits text before BPE. The names are llama.cpp's.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLIT_BY_REGEX = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _TEKKEN,
}
_GPT2_SPLIT = ("default", "gpt-2")
_DIGITS_THEN_GPT2 = ("smollm", "starcoder", "refact", "command-r")
# A whole word that is in the vocabulary is one token, whatever the merges say.
_WHOLE_WORDS_FIRST = {"llama-bpe", "llama3", "llama-v3", "tekken"}
_ADDS_BOS = _WHOLE_WORDS_FIRST  # unless the file says otherwise
_COMPOSES_UNICODE = {"qwen2", "deepseek-r1-qwen"}


def tokenizer_from_gguf(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer in this file, and its named special tokens ("bos_token" → text).

    Raises UnsupportedModel for a kind of tokenizer or split that is not known, WeightError if parts are missing.
    """
    header = read_header(path)
    kind = header.metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        what = f"a tokenizer of the kind {kind!r}" if kind else "no tokenizer (tokenizer.ggml.model)"
        raise UnsupportedModel(f"{path} has {what}; octavo reads 'gpt2' and 'llama'")
    tokens = _array(header, "tokens")
    kinds = _array(header, "token_type") if header.has_array("tokenizer.ggml.token_type") else [1] * len(tokens)
    if len(kinds) != len(tokens):
        raise WeightError(f"{path}: tokenizer.ggml.token_type has {len(kinds)} entries for {len(tokens)} tokens")
    with _collection_paused():
        backend = (_byte_level if kind == "gpt2" else _sentencepiece)(header, tokens, kinds)
    backend.add_tokens(
        [
            AddedToken(token, special=kind == _Kind.CONTROL, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (_Kind.CONTROL, _Kind.USER_DEFINED) and token
        ]
    )
    named = _named_tokens(header, tokens)
    bos = named.get("bos_token") if _adds_bos(header, kind) else None
    eos = named.get("eos_token") if header.metadata.get("tokenizer.ggml.add_eos_token") else None
    put_around(backend, bos, eos)
    return backend, named


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Hundreds of thousands of live tuples make the garbage collector look again and again for nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _array(header: GgufHeader, name: str) -> list[Any]:
    key = f"tokenizer.ggml.{name}"
    if not header.has_array(key):
        raise WeightError(f"{header.path}: the metadata has no {key}")
    return header.array(key)


def _named_tokens(header: GgufHeader, tokens: list[str]) -> dict[str, str]:
    found = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"), ("sep", "seperator")):
        token_id = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None and token_id < len(tokens):
            found[f"{name}_token"] = tokens[token_id]
    return found


def _adds_bos(header: GgufHeader, kind: str) -> bool:
    default = kind == "llama" or header.metadata.get("tokenizer.ggml.pre") in _ADDS_BOS
    return bool(header.metadata.get("tokenizer.ggml.add_bos_token", default))


# --- byte-level BPE ----------------------------------------------------------------------------------------------


def _byte_level(header: GgufHeader, tokens: list[str], kinds: list[int]) -> tokenizers.Tokenizer:
    split = str(header.metadata.get("tokenizer.ggml.pre", "default"))
    merges = [_pair(merge) for merge in _array(header, "merges")]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: token_id for token_id, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=split in _WHOLE_WORDS_FIRST,
        )
    )
    if split in _SPLIT_BY_REGEX:
        steps = [
            pre_tokenizers.Split(Regex(_SPLIT_BY_REGEX[split]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    elif split in _DIGITS_THEN_GPT2:
        steps = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    elif split in _GPT2_SPLIT:
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    else:
        known = sorted({*_SPLIT_BY_REGEX, *_DIGITS_THEN_GPT2, *_GPT2_SPLIT})
        raise UnsupportedModel(
            f"{header.path}: the tokenizer splits text by {split!r} (tokenizer.ggml.pre); octavo knows "
            f"{', '.join(known)}"
        )
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if split in _COMPOSES_UNICODE:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _pair(merge: str) -> tuple[str, str]:
    """Split "a b" into ("a", "b"). A first part may itself begin with a space."""
    left, _, right = merge[1:].partition(" ")
    return merge[0] + left, right


# --- SentencePiece BPE -------------------------------------------------------------------------------------------


def _sentencepiece(header: GgufHeader, tokens: list[str], kinds: list[int]) -> tokenizers.Tokenizer:
    scores = _array(header, "scores")
    if len(scores) != len(tokens):
        raise WeightError(f"{header.path}: tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens")
    unknown = int(header.metadata.get("tokenizer.ggml.unknown_token_id", 0))
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: token_id for token_id, token in enumerate(tokens)},
            merges=_merges_by_score(tokens, scores, kinds),
            unk_token=tokens[unknown],
            fuse_unk=True,
            byte_fallback=_Kind.BYTE in kinds,
        )
    )
    marks_start = bool(header.metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", _SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if marks_start else spaces
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if marks_start:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    return backend


def _merges_by_score(tokens: list[str], scores: list[float], kinds: list[int]) -> list[tuple[str, str]]:
    """Merges that do what SentencePiece does, which joins the two neighbours that make the piece of the highest score.

    So every way to split a piece into two others is a merge, ranked by the score of the piece. Only normal pieces are
    made by joining (sentencepiece/src/bpe_model.cc): user-defined ones are cut out of the text beforehand.
    """
    pieces = {token for token, kind in zip(tokens, kinds, strict=True) if kind == _Kind.NORMAL}
    by_score = sorted((i for i, kind in enumerate(kinds) if kind == _Kind.NORMAL), key=scores.__getitem__, reverse=True)
    merges = []
    for token_id in by_score:
        piece = tokens[token_id]
        for cut in range(1, len(piece)):
            left = piece[:cut]
            if left in pieces:
                right = piece[cut:]
                if right in pieces:
                    merges.append((left, right))
    return merges
