"""The tokenizers of two published models, against ids that llama.cpp made and against the sentencepiece library."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from octavo.config.checkpoint import find_checkpoint
from octavo.config.gguf_header import read_header
from octavo.tokenization.chat_template import find_chat_template, render_chat
from octavo.tokenization.tokenizer import Tokenizer
from tests.real.models import BY_NAME

pytestmark = pytest.mark.real

ANSWERS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("tokenizer_answers.json").read_text())["cases"]


@functools.cache
def tokenizer_of(name: str) -> Tokenizer:
    return Tokenizer.from_path(BY_NAME[name]())


@pytest.mark.parametrize("name", list(BY_NAME))
def test_ids_are_those_of_llama_cpp(name: str) -> None:
    tokenizer = tokenizer_of(name)
    for answer in ANSWERS:
        assert tokenizer.encode(answer["text"], add_special_tokens=False) == answer[name], answer["text"]


@pytest.mark.parametrize("name", list(BY_NAME))
def test_text_comes_back_at_once_and_token_by_token(name: str) -> None:
    tokenizer = tokenizer_of(name)
    # SmolLM2's vocabulary lacks six control characters; SentencePiece cannot tell its mark from a space.
    lossy = "\x04\x06\x13\x14\x16\x1d" if name == "smollm2" else "▁"
    for answer in ANSWERS:
        text, ids = answer["text"], answer[name]
        if set(text) & set(lossy):
            continue
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        stream = tokenizer.decode_stream(skip_special_tokens=False)
        assert "".join(stream.step(token_id) for token_id in ids) == text


def test_gemma_agrees_with_sentencepiece() -> None:
    """Google's own library over the vocabulary of the file."""
    header = read_header(BY_NAME["gemma3"]())
    proto = sentencepiece_model_pb2.ModelProto()
    proto.trainer_spec.model_type = 2  # BPE
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.unk_id, proto.trainer_spec.bos_id = 3, 2
    proto.trainer_spec.eos_id, proto.trainer_spec.pad_id = 1, 0
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True
    columns = (header.array(f"tokenizer.ggml.{name}") for name in ("tokens", "scores", "token_type"))
    for token_id, (token, score, kind) in enumerate(zip(*columns, strict=True)):
        piece = proto.pieces.add()
        piece.piece = token.replace(" ", "▁")
        piece.score = score
        piece.type = 2 if token_id == 3 else kind
    library = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    tokenizer = tokenizer_of("gemma3")
    source = Path(__file__).read_text() + Path(json.__file__).read_text()
    texts = [source[start : start + 300] for start in range(0, len(source), 300)]
    texts += [answer["text"] for answer in ANSWERS if not any(token in answer["text"] for token in ("<", "▁", "\0"))]
    assert len(texts) > 100
    for text in texts:
        if any(token in text for token in tokenizer.all_special_tokens):
            continue  # there control tokens are not parsed
        assert tokenizer.encode(text, add_special_tokens=False) == library.encode(text), text


def test_special_tokens() -> None:
    smollm2, gemma3 = tokenizer_of("smollm2"), tokenizer_of("gemma3")
    assert (smollm2.vocab_size, smollm2.bos_token_id, smollm2.eos_token_id) == (49152, 1, 2)
    assert (gemma3.vocab_size, gemma3.bos_token_id, gemma3.eos_token_id) == (262144, 2, 1)
    assert smollm2.encode("Hello world") == [19556, 905]
    assert gemma3.encode("Hello world") == [2, 9259, 1902]


def test_chat() -> None:
    checkpoint = find_checkpoint(str(BY_NAME["smollm2"]()))
    text = render_chat(
        find_chat_template(checkpoint), [{"role": "user", "content": "Why is the sky blue?"}], tokenizer_of("smollm2")
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer_of("smollm2").encode(text, add_special_tokens=False).count(1) == 3
    assert find_chat_template(find_checkpoint(str(BY_NAME["gemma3"]()))) is None
