"""A model's tokens as bytes, and which of them are text: what every grammar backend is made from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from octavo.config.engine_config import EngineConfig
from octavo.errors import InvalidRequest
from octavo.tokenization.byte_steps import byte_steps, bytes_of
from octavo.tokenization.tokenizer import Tokenizer, end_token_ids, tokenizer_path


@dataclass(frozen=True)
class Vocabulary:
    """`pieces[id]` are the bytes of a token, b"" where it has none; there are `size` ids, as many as logits."""

    size: int
    pieces: list[bytes]
    special_ids: frozenset[int]  # never part of what is structured
    eos_token_ids: tuple[int, ...]
    tokenizer: Tokenizer | None = field(default=None, repr=False)

    @classmethod
    def of(cls, tokenizer: Tokenizer, size: int, eos_token_ids: Iterable[int]) -> Vocabulary:
        """Raises InvalidRequest where a token's text depends on its neighbours."""
        decoder = tokenizer.backend.decoder
        steps = None if decoder is None else byte_steps(json.loads(decoder.__getstate__()))
        if steps is None:
            raise InvalidRequest(
                "structured_outputs: the text of this model's tokens depends on their neighbours, which no grammar "
                "backend can follow",
                "structured_outputs",
            )
        pieces = [b""] * size
        for token, token_id in tokenizer.backend.get_vocab(with_added_tokens=True).items():
            if token_id < size:
                pieces[token_id] = bytes_of(token, steps)
        for token_id, added in tokenizer.backend.get_added_tokens_decoder().items():
            if token_id < size:
                pieces[token_id] = added.content.encode("utf-8", "replace")
        eos = tuple(sorted({token_id for token_id in eos_token_ids if 0 <= token_id < size}))
        special = frozenset(tokenizer.special_ids | set(eos))
        return cls(size, pieces, special, eos, tokenizer)

    @property
    def num_words(self) -> int:
        """int32 in a row of a mask."""
        return -(-self.size // 32)

    @cached_property
    def all_words(self) -> np.ndarray:
        """A row of a mask that allows every token."""
        flags = np.arange(self.num_words * 32) < self.size
        return np.packbits(flags, bitorder="little").view(np.int32)

    @cached_property
    def text_pieces(self) -> list[bytes]:
        """The pieces, without those of special tokens."""
        return [b"" if token_id in self.special_ids else piece for token_id, piece in enumerate(self.pieces)]

    @cached_property
    def ids_of(self) -> dict[bytes, list[int]]:
        """Tokens by their bytes, special ones too."""
        ids: dict[bytes, list[int]] = {}
        for token_id, piece in enumerate(self.pieces):
            if piece:
                ids.setdefault(piece, []).append(token_id)
        return ids

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.ids_of))

    def encode(self, data: bytes) -> list[int]:
        """Tokens of text, as the tokenizer has them; by the longest piece first where it cannot tell."""
        try:
            if self.tokenizer is not None:
                return self.tokenizer.encode(data.decode(), add_special_tokens=False)
        except UnicodeDecodeError:
            pass
        ids, at = [], 0
        while at < len(data):
            for end in range(min(len(data), at + self._longest), at, -1):
                if found := self.ids_of.get(data[at:end]):
                    ids.append(found[0])
                    at = end
                    break
            else:
                at += 1
        return ids


def vocabulary_of(config: EngineConfig) -> Vocabulary:
    """An engine's own. Reads its tokenizer. Raises InvalidRequest where it has none."""
    if config.text.skip_tokenizer_init:
        raise InvalidRequest(
            "structured_outputs need the model's tokenizer, and the engine runs without one (skip_tokenizer_init)",
            "structured_outputs",
        )
    tokenizer = Tokenizer.from_path(tokenizer_path(config))
    return Vocabulary.of(tokenizer, config.model.vocab_size, end_token_ids(config, tokenizer))
