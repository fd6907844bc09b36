"""What may be asked, what it becomes, and what an error says."""

from __future__ import annotations

import re
from typing import Any

import pytest

from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.engine.inputs import (
    InputProcessor,
    PromptLimits,
    match_params,
    match_priorities,
    split_conversations,
    split_prompts,
)
from octavo.errors import InvalidParameter, InvalidRequest, PromptTooLong
from tests.unit.engine.scripted import byte_level_tokenizer

LIMITS = PromptLimits(vocab_size=330, max_model_len=32, max_logprobs=5)


def processor(**more: Any) -> InputProcessor:
    return InputProcessor(LIMITS, byte_level_tokenizer(), [0, 7, 7], **more)


def test_all_forms_of_a_prompt() -> None:
    inputs, params = processor(), SamplingParams()
    ids = byte_level_tokenizer().encode("hello")
    for prompt, text in (
        ("hello", "hello"),
        (ids, None),
        (tuple(ids), None),
        ({"prompt": "hello"}, "hello"),
        ({"prompt_token_ids": ids}, None),
        ({"prompt": "shown", "prompt_token_ids": ids}, "shown"),
    ):
        prepared = inputs.prepare(prompt, params, "name")
        assert (prepared.prompt, prepared.prompt_token_ids) == (text, ids)
        assert prepared.submits[0].prompt_token_ids == ids
    salted = inputs.prepare({"prompt": "hello", "cache_salt": "mine"}, params, "name")
    assert salted.submits[0].cache_salt == "mine"


def test_arrays_of_ids() -> None:
    numpy = pytest.importorskip("numpy")
    prepared = processor().prepare(numpy.array([1, 2, 3]), SamplingParams(), "name")
    assert prepared.prompt_token_ids == [1, 2, 3] and type(prepared.prompt_token_ids[0]) is int
    assert len(split_prompts(numpy.array([1, 2, 3]))) == 1


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", ["prompt must not be empty"]),
        ({"prompt": ""}, ["prompt must not be empty"]),
        ([], ["prompt must not be empty"]),
        ({"prompt_token_ids": []}, ["prompt must not be empty"]),
        ({}, ["prompt", "prompt_token_ids"]),
        ({"promt": "x"}, ["'promt'", "did you mean prompt"]),
        ({"prompt": "x", "multi_modal_data": {}}, ["'multi_modal_data'"]),
        ({"prompt": 3}, ["prompt must be a string", "3"]),
        ({"prompt": "x", "cache_salt": ""}, ["cache_salt"]),
        ([1, 330], ["prompt_token_ids[1]", "330", "between 0 and 329"]),
        ([1, -2, 3], ["prompt_token_ids[1]", "-2"]),
        ([1, 2.5], ["prompt_token_ids[1]", "2.5", "whole number"]),
        ([1, True], ["prompt_token_ids[1]", "True"]),
        ({"prompt_token_ids": "12"}, ["prompt_token_ids", "list of token ids"]),
        (None, ["prompt must be a string, token ids or a dictionary", "None"]),
    ],
)
def test_bad_prompts_say_what_is_wrong(prompt: Any, words: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        processor().prepare(prompt, SamplingParams(), "name")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_prompt_must_leave_a_token_to_generate() -> None:
    inputs = processor()
    assert inputs.prepare([1] * 31, SamplingParams(max_tokens=None), "name").submits[0].params.max_tokens == 1
    with pytest.raises(PromptTooLong) as caught:
        inputs.prepare([1] * 32, SamplingParams(), "name")
    assert (caught.value.num_tokens, caught.value.limit) == (32, 31)


def test_unset_max_tokens_is_the_rest_of_the_context() -> None:
    params = SamplingParams(max_tokens=None)
    prepared = processor().prepare([1] * 10, params, "name")
    assert prepared.submits[0].params.max_tokens == 22 and params.max_tokens is None


def test_eos_ids() -> None:
    inputs = processor()
    assert inputs.prepare([1], SamplingParams(), "name").submits[0].eos_token_ids == [0, 7]
    assert inputs.prepare([1], SamplingParams(ignore_eos=True), "name").submits[0].eos_token_ids == []


def test_ids_for_the_core_are_unique_and_readable() -> None:
    inputs = processor()
    first, second = (inputs.prepare([1], SamplingParams(), "name").submits[0].request_id for _ in range(2))
    assert first != second
    name, _, digits = first.rpartition("-")
    assert name == "name" and len(digits) == 8 and int(digits, 16) >= 0


def test_n_makes_children_with_seeds_of_their_own() -> None:
    seeded = processor().prepare([1], SamplingParams(n=3, seed=40), "name")
    assert [submit.seed for submit in seeded.submits] == [40, 41, 42]
    assert [submit.params.seed for submit in seeded.submits] == [40, 41, 42]
    assert all(submit.params.n == 1 for submit in seeded.submits)
    ids = [submit.request_id for submit in seeded.submits]
    assert [name[:7] for name in ids] == ["0_name-", "1_name-", "2_name-"] and len({name[2:] for name in ids}) == 1
    unseeded = processor().prepare([1], SamplingParams(n=2), "name")
    assert [submit.seed for submit in unseeded.submits] == [None, None]
    assert processor().prepare([1], SamplingParams(seed=9), "name").submits[0].seed == 9


def test_parameters_are_checked_against_the_model() -> None:
    inputs = processor()
    with pytest.raises(InvalidParameter, match="logprobs must be at most 5"):
        inputs.prepare([1], SamplingParams(logprobs=6), "name")
    with pytest.raises(InvalidParameter, match="stop_token_ids"):
        inputs.prepare([1], SamplingParams(stop_token_ids=[330]), "name")
    with pytest.raises(InvalidParameter, match="sampling_params must be a SamplingParams"):
        inputs.prepare([1], {"n": 1}, "name")  # type: ignore[arg-type]
    with pytest.raises(InvalidParameter, match="request_id"):
        inputs.prepare([1], SamplingParams(), "")
    with pytest.raises(InvalidParameter, match="priority"):
        inputs.prepare([1], SamplingParams(), "name", priority="high")  # type: ignore[arg-type]


def test_without_a_tokenizer() -> None:
    inputs = InputProcessor(LIMITS)
    assert inputs.prepare([1, 2], SamplingParams(), "name").prompt_token_ids == [1, 2]
    with pytest.raises(InvalidRequest, match="skip_tokenizer_init"):
        inputs.prepare("text", SamplingParams(), "name")
    with pytest.raises(InvalidRequest, match="stop strings need a tokenizer"):
        inputs.prepare([1], SamplingParams(stop="x"), "name")


def test_one_prompt_or_many() -> None:
    assert split_prompts("a") == ["a"]
    assert split_prompts([1, 2]) == [[1, 2]]
    assert split_prompts({"prompt": "a"}) == [{"prompt": "a"}]
    assert split_prompts(["a", [1, 2], {"prompt": "b"}]) == ["a", [1, 2], {"prompt": "b"}]
    assert split_prompts([]) == []
    assert split_prompts([1.5, 2]) == [[1.5, 2]]  # one bad prompt, not two
    with pytest.raises(InvalidParameter, match="prompts must be"):
        split_prompts(5)


def test_parameters_and_priorities_for_many() -> None:
    default, own = SamplingParams(top_k=3), SamplingParams(top_k=4)
    assert match_params(None, 2, default) == [default, default]
    assert match_params(own, 2, default) == [own, own]
    assert match_params([own, default], 2, default) == [own, default]
    assert match_priorities(None, 2) == [0, 0] and match_priorities([1, 2], 2) == [1, 2]
    with pytest.raises(InvalidRequest, match="sampling_params has 1 entries for 2 prompts"):
        match_params([own], 2, default)
    with pytest.raises(InvalidRequest, match="priority has 1 entries for 2 prompts"):
        match_priorities([1], 2)


def test_messages_are_written_out_by_the_template() -> None:
    message = {"role": "user", "content": "hi"}
    with pytest.raises(InvalidRequest, match="no chat template"):
        processor().render([message])
    inputs = processor(chat_template="{% for m in messages %}<{{ m.content }}>{% endfor %}{{ mood }}")
    assert inputs.can_chat and not processor().can_chat
    assert inputs.render([message], mood="!") == "<hi>!"
    assert inputs.render([message], chat_template="{{ messages[0].role }}") == "user"
    with pytest.raises(InvalidRequest, match=r"messages\[1\].role"):
        inputs.render([message, {"content": "x"}])
    with pytest.raises(InvalidRequest, match="skip_tokenizer_init"):
        InputProcessor(LIMITS, chat_template="x").render([message])


def test_one_conversation_or_many() -> None:
    message = {"role": "user", "content": "hi"}
    assert split_conversations([message]) == [[message]]
    assert split_conversations([[message], [message]]) == [[message], [message]]
    with pytest.raises(InvalidParameter, match="messages"):
        split_conversations("hi")


# ---- bad words


def test_bad_words_become_tokens_at_the_beginning_of_a_text_and_within() -> None:
    """With a space before it a word counts too, where that gives another first token and no more of them."""
    encode = byte_level_tokenizer().encode
    for word, forms in (
        ("sat", ["sat", " sat"]),
        ("  sat", ["sat", " sat"]),
        ("cat", ["cat"]),  # " cat" is one token, "cat" two
        ("xyz", ["xyz"]),
    ):
        given = SamplingParams(bad_words=[word])
        prepared = processor().prepare("hello", given, "name")
        assert prepared.submits[0].params.bad_words_token_ids == [encode(form) for form in forms]
        assert given.bad_words_token_ids is None
    assert encode("sat") != encode(" sat")
    both = SamplingParams(bad_words=["xyz"], bad_words_token_ids=[[1, 2]])
    found = processor().prepare("hello", both, "name").submits[0].params.bad_words_token_ids
    assert found == [[1, 2], encode("xyz")]


def test_bad_words_that_cannot_be_tokens_of_the_model() -> None:
    tokenizer = byte_level_tokenizer()
    small = PromptLimits(vocab_size=max(tokenizer.encode("END")), max_model_len=32, max_logprobs=5)
    with pytest.raises(InvalidParameter, match=r"bad_words\[1\] must be made of tokens below the vocabulary size"):
        InputProcessor(small, tokenizer).prepare([1], SamplingParams(bad_words=["!", "END"]), "name")
    with pytest.raises(InvalidRequest, match="bad_words must be token ids: the engine runs without a tokenizer"):
        InputProcessor(LIMITS).prepare([1], SamplingParams(bad_words=["cat"]), "name")
    with pytest.raises(InvalidParameter, match="bad_words_token_ids must be below the vocabulary size 330"):
        processor().prepare("hello", SamplingParams(bad_words_token_ids=[[1, 330]]), "name")


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": 3}, slice(-3, None)),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, slice(0, 3)),
        ({"truncate_prompt_tokens": 300}, slice(0, None)),
        ({"truncate_prompt_tokens": -1, "max_tokens": 12}, slice(-20, None)),
        ({"truncate_prompt_tokens": -1, "max_tokens": None}, slice(-31, None)),
    ],
)
def test_prompts_are_truncated(fields: dict[str, Any], kept: slice) -> None:
    inputs = processor()
    prompt = list(range(40, 72)) if fields["truncate_prompt_tokens"] == -1 else list(range(40, 50))
    prepared = inputs.prepare({"prompt": "text", "prompt_token_ids": prompt}, SamplingParams(**fields), "name")
    assert prepared.prompt_token_ids == prepared.submits[0].prompt_token_ids == prompt[kept]
    whole = len(prompt[kept]) == len(prompt)
    assert prepared.prompt == ("text" if whole else byte_level_tokenizer().decode(prompt[kept]))


def test_searches_are_one_request_and_answer_once() -> None:
    inputs = processor()
    search = SamplingParams(n=3, use_beam_search=True, temperature=0)
    prepared = inputs.prepare([1, 2], search, "name")
    assert len(prepared.submits) == 1 and prepared.submits[0].params.n == 3
    best = inputs.prepare([1, 2], SamplingParams(n=2, best_of=3, seed=5), "name")
    assert [submit.params.seed for submit in best.submits] == [5, 6, 7]
    for one in (prepared, best):
        assert one.params.output_kind is RequestOutputKind.FINAL_ONLY
    assert search.output_kind is RequestOutputKind.CUMULATIVE, "the user's own is left alone"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt_logprob_token_ids": [1], "prompt_logprob_start": 3}, "prompt_logprob_start must be at most 2"),
        ({"prompt_logprob_token_ids": [[1], [2]], "prompt_logprob_start": 1}, "has 2 rows, but the prompt of 3 tokens"),
        ({"prompt_logprob_token_ids": [1000]}, "prompt_logprob_token_ids"),
        ({"prompt_logprobs": -1}, "would take 1.8 GiB; at most 1 GiB"),
    ],
)
def test_log_probabilities_of_a_prompt_are_checked_against_it(fields: dict[str, Any], message: str) -> None:
    vocab_size = 80_000_000 if "prompt_logprobs" in fields else 1000
    inputs = InputProcessor(PromptLimits(vocab_size, 100, -1))
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        inputs.prepare([5, 6, 7], SamplingParams(**fields), "r")
    inputs.prepare([5, 6], SamplingParams(prompt_logprob_token_ids=[[1]], prompt_logprob_start=0), "r")


def test_only_the_first_of_n_asks_for_the_prompt_s_log_probabilities() -> None:
    params = SamplingParams(n=3, prompt_logprobs=2, prompt_logprob_token_ids=[5])
    prepared = InputProcessor(PromptLimits(1000, 100, -1)).prepare([5, 6, 7], params, "r")
    asked = [(one.params.prompt_logprobs, one.params.prompt_logprob_token_ids) for one in prepared.submits]
    assert asked == [(2, [5]), (None, None), (None, None)]
