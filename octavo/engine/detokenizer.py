"""Token ids → text as they come, without ever showing half a character.

Most tokenizers turn each token into bytes on its own (byte-level BPE, SentencePiece with byte fallback): their tokens
are looked up in a table and the bytes decoded as UTF-8, incomplete characters kept back. The few that look at their
neighbours (WordPiece, rules with regular expressions) decode a short window again for each token.

Text continues the prompt: a SentencePiece output keeps the space that its first token begins with.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence
from typing import Protocol

from octavo.tokenization.byte_steps import byte_steps, bytes_of
from octavo.tokenization.tokenizer import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_WINDOW_TOKENS = 6  # of the prompt, that a window starts with
_MAX_PENDING_TOKENS = 8  # a character has at most 4 bytes: longer waits are for text that is broken anyway
_UTF8_BYTES = 4  # the most a character has


class Detokenizer(Protocol):
    """The text of one completion, in order."""

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete."""

    def flush(self) -> str:
        """What is still kept back, broken characters as U+FFFD. The last call."""


class TokenText:
    """The texts of one tokenizer's tokens, looked up once each. Shared by all requests of one thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.special_ids = tokenizer.special_ids
        decoder = tokenizer.backend.decoder
        self._steps = None if decoder is None else byte_steps(json.loads(decoder.__getstate__()))
        self._pieces: dict[int, bytes] = {}
        self._spoken_pieces: dict[int, bytes] = {}  # where special tokens are silent
        self._texts: dict[int, str] = {}

    @property
    def is_bytewise(self) -> bool:
        """Each token is some bytes, whatever stands next to it."""
        return self._steps is not None

    def text_of(self, token_id: int) -> str:
        """One token alone, special ones spelled out: what log-probabilities show."""
        text = self._texts.get(token_id)
        if text is None:
            if self._steps is not None:
                text = self.piece(token_id, False).decode("utf-8", "replace")
            else:
                text = self.tokenizer.decode([token_id], skip_special_tokens=False)
            self._texts[token_id] = text
        return text

    def piece(self, token_id: int, skip_special_tokens: bool) -> bytes:
        """The bytes of one token, where the tokenizer is bytewise. Ids beyond its vocabulary have none."""
        table = self._spoken_pieces if skip_special_tokens else self._pieces
        piece = table.get(token_id)
        if piece is None:
            piece = table[token_id] = self._make_piece(token_id, skip_special_tokens)
        return piece

    def _make_piece(self, token_id: int, skip_special_tokens: bool) -> bytes:
        assert self._steps is not None
        token = self.tokenizer.convert_id_to_token(token_id)
        if not token or (skip_special_tokens and token_id in self.special_ids):
            return b""
        return bytes_of(token, self._steps)

    def start(
        self,
        prompt_token_ids: Sequence[int],
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> Detokenizer:
        """A detokenizer for what follows the prompt."""
        if self._steps is not None:
            return BytewiseDetokenizer(self, prompt_token_ids, skip_special_tokens)
        return WindowDetokenizer(self, prompt_token_ids, skip_special_tokens, spaces_between_special_tokens)


class BytewiseDetokenizer:
    """Tokens as bytes; `_pending` is the beginning of a character, at most 3 bytes."""

    __slots__ = ("_pending", "_piece", "_skip")

    def __init__(self, text: TokenText, prompt_token_ids: Sequence[int], skip_special_tokens: bool) -> None:
        self._piece, self._skip = text.piece, skip_special_tokens
        self._pending = b""
        self.push(prompt_token_ids[-_UTF8_BYTES:])  # a prompt may end inside a character

    def push(self, token_ids: Iterable[int]) -> str:
        piece, skip = self._piece, self._skip
        data = self._pending + b"".join([piece(token_id, skip) for token_id in token_ids])
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        return text

    def flush(self) -> str:
        text = self._pending.decode("utf-8", "replace")
        self._pending = b""
        return text


class WindowDetokenizer:
    """Decodes `ids[prefix:read]` and `ids[prefix:]`; what the second has more is new.

    The window starts some tokens before what is new, since a token's text may depend on the one before it.
    """

    __slots__ = ("_ids", "_keep_apart", "_last_special", "_read", "_skip", "_text")

    def __init__(
        self, text: TokenText, prompt_token_ids: Sequence[int], skip_special_tokens: bool, keep_apart: bool
    ) -> None:
        self._text, self._skip = text, skip_special_tokens
        self._keep_apart = skip_special_tokens or keep_apart
        silent = text.special_ids if skip_special_tokens else ()
        self._ids = [token_id for token_id in prompt_token_ids[-4 * _WINDOW_TOKENS :] if token_id not in silent]
        self._ids = self._ids[-_WINDOW_TOKENS:]
        self._read = len(self._ids)
        self._last_special = False

    def push(self, token_ids: Iterable[int]) -> str:
        return "".join([self._push(token_id) for token_id in token_ids])

    def _push(self, token_id: int) -> str:
        is_special = token_id in self._text.special_ids
        if is_special and self._skip:
            return ""
        self._ids.append(token_id)
        was_special, self._last_special = self._last_special, is_special
        new = self._new_text()
        pending = len(self._ids) - self._read
        if not new or (new.endswith(_REPLACEMENT) and pending < _MAX_PENDING_TOKENS):
            if pending >= 4 * _MAX_PENDING_TOKENS:  # tokens without text: the window must not grow without end
                self._advance()
            return ""
        self._advance()
        if is_special and was_special and not self._keep_apart:
            return new.removeprefix(" ")
        return new

    def flush(self) -> str:
        new = self._new_text()
        self._advance()
        return new

    def _new_text(self) -> str:
        decode = self._text.tokenizer.decode
        before = decode(self._ids[: self._read], skip_special_tokens=self._skip)
        return decode(self._ids, skip_special_tokens=self._skip)[len(before) :]

    def _advance(self) -> None:
        self._ids = self._ids[self._read :] if len(self._ids) > self._read else self._ids
        self._read = len(self._ids)
