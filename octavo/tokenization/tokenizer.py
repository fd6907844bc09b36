"""Text to token ids and back, through the `tokenizers` library. Chat templates are in `chat_template.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken
from tokenizers.decoders import DecodeStream as _LibraryStream

from octavo.config.checkpoint import Checkpoint, locate, read_json
from octavo.config.engine_config import EngineConfig
from octavo.errors import CheckpointError, InvalidParameter, UnsupportedModel
from octavo.tokenization.gguf_vocabulary import tokenizer_from_gguf
from octavo.tokenization.special_tokens import put_around

# Special tokens that chat templates may name, as tokenizer_config.json calls them.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_PROMPT_WINDOW = 8  # tokens of the prompt that decoding starts with: more than one character can have


class Tokenizer:
    """One model's tokenizer. Immutable after construction and safe to share between threads."""

    def __init__(self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens` maps names such as "bos_token" to their text, as templates use them."""
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.special_tokens = dict(special_tokens)

    # --- text and ids ---

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Special tokens written out in `text` become their ids; `add_special_tokens` adds what the model wants
        around a text, such as BOS."""
        if not isinstance(text, str):
            raise InvalidParameter("prompt", text, "a string")
        return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def decode_stream(self, prompt_ids: Sequence[int] = (), skip_special_tokens: bool = True) -> DecodeStream:
        """Decodes ids that arrive one at a time; `prompt_ids` came before them and are not repeated in the text."""
        return DecodeStream(self.backend, prompt_ids, skip_special_tokens)

    def convert_id_to_token(self, token_id: int) -> str:
        """The vocabulary's own spelling ("Ġthe", "▁the"); "" for an id no token has (padded embeddings)."""
        return self.backend.id_to_token(token_id) or ""

    def convert_token_to_id(self, token: str) -> int | None:
        found = self.backend.token_to_id(token)
        return None if found is None else int(found)

    # --- what the vocabulary has ---

    @cached_property
    def vocab_size(self) -> int:
        """Tokens, added ones included. The model's embedding may have more rows."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def bos_token_id(self) -> int | None:
        return self._id_of("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._id_of("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        return self._id_of("pad_token")

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that `decode` leaves out with skip_special_tokens."""
        return frozenset(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def all_special_tokens(self) -> list[str]:
        return [self.convert_id_to_token(token_id) for token_id in sorted(self.special_ids)]

    def _id_of(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.convert_token_to_id(token)

    # --- where it comes from ---

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Tokenizer:
        """The tokenizer that lies with the weights. Raises UnsupportedModel if there is none."""
        if checkpoint.path is None:
            raise UnsupportedModel(f"{checkpoint.source} is a configuration alone and has no tokenizer")
        return cls.from_gguf(checkpoint.path) if checkpoint.is_gguf_file else cls.from_directory(checkpoint.path)

    @classmethod
    def from_path(cls, path: Path) -> Tokenizer:
        """From a directory or a .gguf file."""
        return cls.from_gguf(path) if path.is_file() else cls.from_directory(path)

    @classmethod
    def from_gguf(cls, path: Path) -> Tokenizer:
        return cls(*tokenizer_from_gguf(path))

    @classmethod
    def from_directory(cls, directory: Path) -> Tokenizer:
        """From tokenizer.json and tokenizer_config.json."""
        file = directory / "tokenizer.json"
        if not file.is_file():
            others = [name for name in ("tokenizer.model", "vocab.json", "tekken.json") if (directory / name).is_file()]
            has = f"; it has {', '.join(others)}, which must be converted first" if others else ""
            raise UnsupportedModel(f"{directory} has no tokenizer.json{has}")
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{file} cannot be read: {error}") from error
        settings = read_json(directory / "tokenizer_config.json") or {}
        named = _named_tokens(settings, read_json(directory / "special_tokens_map.json") or {})
        _add_missing_tokens(backend, settings, named)
        _add_post_processor(backend, settings, named)
        return cls(backend, named)


class DecodeStream:
    """Incremental decoding of one sequence: text comes out once its bytes are a whole character."""

    def __init__(self, backend: tokenizers.Tokenizer, prompt_ids: Sequence[int], skip_special_tokens: bool) -> None:
        self._backend = backend
        self._skip_special_tokens = skip_special_tokens
        self._stream = _LibraryStream(skip_special_tokens=skip_special_tokens)
        for token_id in prompt_ids[-_PROMPT_WINDOW:]:  # its text is not wanted, but what it leaves unfinished is
            self.step(token_id)

    def step(self, token_id: int) -> str:
        """The text that `token_id` completes; "" while a character is unfinished."""
        try:
            return self._stream.step(self._backend, token_id) or ""
        except Exception as error:
            # A prefix of damaged bytes cannot be taken away from what follows: start anew with this token.
            if "Invalid prefix" not in str(error):
                raise
            self._stream = _LibraryStream(skip_special_tokens=self._skip_special_tokens)
            return self._stream.step(self._backend, token_id) or ""


def tokenizer_path(config: EngineConfig) -> Path:
    """Where the tokenizer of an engine lies; its small files are fetched if need be."""
    path = config.model.checkpoint.path
    if path is None or config.model.tokenizer != str(path):
        return locate(config.model.tokenizer, load_format="dummy")
    return path


def end_token_ids(config: EngineConfig, tokenizer: Tokenizer | None) -> set[int]:
    """The configs' and the tokenizer's: models end an answer with either."""
    own = None if tokenizer is None else tokenizer.eos_token_id
    return {*config.text.eos_token_ids, *([] if own is None else [own])}


def _text_of(token: Any) -> str | None:
    """A token in a JSON file is a string, or an object with `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _named_tokens(settings: Mapping[str, Any], special_map: Mapping[str, Any]) -> dict[str, str]:
    found = {name: _text_of(settings.get(name)) or _text_of(special_map.get(name)) for name in _NAMED}
    return {name: text for name, text in found.items() if text is not None}


def _add_missing_tokens(backend: tokenizers.Tokenizer, settings: Mapping[str, Any], named: Mapping[str, str]) -> None:
    """Tokens that only tokenizer_config.json knows, in the order of their ids; named ones are special."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = sorted((settings.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0]))
    for _, token in listed:
        text = _text_of(token)
        if text is None or text in known:
            continue
        flags = {key: token[key] for key in ("single_word", "lstrip", "rstrip", "normalized") if key in token}
        special = bool(token.get("special")) or text in named.values()
        backend.add_tokens([AddedToken(text, special=special, **flags)])
        known.add(text)
    missing = [text for text in named.values() if text not in known]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in missing])


def _add_post_processor(backend: tokenizers.Tokenizer, settings: Mapping[str, Any], named: Mapping[str, str]) -> None:
    """tokenizer.json's post-processor decides; only where it has none do add_bos_token and add_eos_token count."""
    if backend.post_processor is None:
        bos = named.get("bos_token") if settings.get("add_bos_token") else None
        eos = named.get("eos_token") if settings.get("add_eos_token") else None
        put_around(backend, bos, eos)
