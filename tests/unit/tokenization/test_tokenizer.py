from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from octavo.config.checkpoint import find_checkpoint
from octavo.errors import CheckpointError, InvalidParameter, UnsupportedModel
from octavo.tokenization.tokenizer import Tokenizer

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())


def backend() -> tokenizers.Tokenizer:
    """Every byte is a token; "<s>" and "</s>" are added behind them."""
    made = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(LETTERS)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    return made


def directory(path: Path, made: tokenizers.Tokenizer | None = None, **files: Any) -> Path:
    (made or backend()).save(str(path / "tokenizer.json"))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def test_from_a_directory(tmp_path: Path) -> None:
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "add_bos_token": True}
    tokenizer = Tokenizer.from_path(directory(tmp_path, tokenizer_config=settings))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (256, 257, None)
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    a = LETTERS.index("a")
    assert tokenizer.encode("a</s>") == [256, a, 257]
    assert tokenizer.encode("a</s>", add_special_tokens=False) == [a, 257]
    assert tokenizer.decode([256, a, 257]) == "a"
    assert tokenizer.decode([256, a, 257], skip_special_tokens=False) == "<s>a</s>"
    assert (tokenizer.vocab_size, tokenizer.special_ids) == (258, {256, 257})
    assert (tokenizer.convert_id_to_token(257), tokenizer.convert_id_to_token(999)) == ("</s>", "")
    assert (tokenizer.convert_token_to_id("<s>"), tokenizer.convert_token_to_id("<t>")) == (256, None)


def test_the_post_processor_of_tokenizer_json_decides(tmp_path: Path) -> None:
    made = backend()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 257)])
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    tokenizer = Tokenizer.from_directory(directory(tmp_path, made, tokenizer_config=settings))
    assert tokenizer.encode("a") == [LETTERS.index("a"), 257]


def test_without_a_request_nothing_is_added(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory(tmp_path, tokenizer_config={"bos_token": "<s>"}))
    assert tokenizer.encode("a") == [LETTERS.index("a")]


def test_tokens_that_only_the_settings_know_are_added(tmp_path: Path) -> None:
    settings = {
        "added_tokens_decoder": {
            "257": {"content": "</s>", "special": True},
            "259": {"content": "<tool>", "special": False},
            "258": {"content": "<|end|>", "special": True},
        },
        "pad_token": "<pad>",
    }
    tokenizer = Tokenizer.from_directory(directory(tmp_path, tokenizer_config=settings))
    assert tokenizer.encode("<|end|><tool><pad>") == [258, 259, 260]
    assert tokenizer.special_ids == {256, 257, 258, 260}


def test_names_may_come_from_special_tokens_map(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory(tmp_path, special_tokens_map={"eos_token": "</s>"}))
    assert tokenizer.eos_token_id == 257


def test_truncation_and_padding_in_the_file_are_switched_off(tmp_path: Path) -> None:
    made = backend()
    made.enable_truncation(3)
    made.enable_padding(length=8)
    assert len(Tokenizer.from_directory(directory(tmp_path, made)).encode("abcdef")) == 6


def test_agrees_with_transformers(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    made = backend()
    made.add_tokens([AddedToken("<tool>", special=False, lstrip=True)])
    theirs = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.from_directory(tmp_path)
    for text in ("", "plain", "a </s> b <tool> c<pad>", "日本 🤗"):
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True), text
    assert (ours.vocab_size, ours.pad_token_id) == (len(theirs), theirs.pad_token_id)


def test_decode_stream_waits_for_whole_characters(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory(tmp_path))
    text = "é 日本 🤗!"
    stream = tokenizer.decode_stream()
    steps = [stream.step(token_id) for token_id in tokenizer.encode(text)]
    assert [step for step in steps if step] == list(text)
    silent = tokenizer.decode_stream()
    assert silent.step(257) == ""
    assert tokenizer.decode_stream(skip_special_tokens=False).step(257) == "</s>"


def test_decode_stream_continues_a_prompt(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory(tmp_path))
    ids = tokenizer.encode("aé")
    stream = tokenizer.decode_stream(prompt_ids=ids[:2])
    assert stream.step(ids[2]) == "é"


def test_decode_stream_survives_bytes_that_make_no_character(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory(tmp_path))
    broken = tokenizer.encode("é")[1]  # a continuation byte alone
    stream = tokenizer.decode_stream()
    text = "".join(stream.step(token_id) for token_id in [broken, broken, *tokenizer.encode("ok, on we go")])
    assert text.endswith("we go")


@pytest.mark.parametrize("text", [None, 5, b"bytes", ["a"]])
def test_a_prompt_must_be_text(tmp_path: Path, text: Any) -> None:
    with pytest.raises(InvalidParameter, match="prompt must be a string, got"):
        Tokenizer.from_directory(directory(tmp_path)).encode(text)


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"no tokenizer\.json$"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(UnsupportedModel, match=r"no tokenizer\.json; it has tokenizer\.model, which must be converted"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_directory(tmp_path)
    alone = find_checkpoint({"architectures": ["LlamaForCausalLM"]}, load_format="dummy")
    with pytest.raises(UnsupportedModel, match="configuration alone"):
        Tokenizer.from_checkpoint(alone)
