"""OpenAI's own client, as it is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from octavo import LLM, SamplingParams

HELLO: Any = [{"role": "user", "content": "hello to the cat"}]


def test_chat(openai_client: OpenAI) -> None:
    answer = openai_client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=8, temperature=0)
    choice = answer.choices[0]
    assert choice.finish_reason == "length" and choice.message.role == "assistant" and choice.message.content
    assert answer.id.startswith("chatcmpl-") and answer.model == "tiny" and answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    stream = openai_client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=8, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == choice.message.content
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


def test_chat_choices_seeds_and_logprobs(openai_client: OpenAI) -> None:
    def ask(seed: int) -> Any:
        return openai_client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=6, n=2, seed=seed, logprobs=True, top_logprobs=3
        )

    first, again, other = ask(1), ask(1), ask(2)
    texts = [[choice.message.content for choice in answer.choices] for answer in (first, again, other)]
    assert texts[0] == texts[1] != texts[2] and texts[0][0] != texts[0][1]
    for choice in first.choices:
        entries = choice.logprobs.content
        assert len(entries) == 6 and all(len(entry.top_logprobs) == 3 for entry in entries)
        said = b"".join(bytes(entry.bytes) for entry in entries).decode("utf-8", "replace")
        assert said == choice.message.content
        tops = [top.logprob for top in entries[0].top_logprobs]
        assert tops == sorted(tops, reverse=True) and entries[0].logprob <= tops[0] < 0


def test_completions(openai_client: OpenAI) -> None:
    answer = openai_client.completions.create(
        model="alias", prompt=["Once upon", "The cat"], max_tokens=5, temperature=0, logprobs=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1] and answer.model == "alias"
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None and logprobs.top_logprobs is not None
    assert len(logprobs.tokens) == len(logprobs.token_logprobs or ()) == len(logprobs.text_offset or ()) == 5
    assert max(logprobs.top_logprobs[0].values()) == logprobs.top_logprobs[0][logprobs.tokens[0]]  # greedy
    echoed = openai_client.completions.create(model="tiny", prompt="Once upon", max_tokens=5, temperature=0, echo=True)
    assert echoed.choices[0].text == "Once upon" + answer.choices[0].text
    stream = openai_client.completions.create(
        model="tiny", prompt="Once upon", max_tokens=5, temperature=0, echo=True, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == echoed.choices[0].text


def test_echo_with_logprobs_is_what_python_says(openai_client: OpenAI, tiny_model: Path) -> None:
    prompt = "Once upon a time 你好 the cat sat on the mat. Once upon a time"
    options = {"load_format": "dummy", "threads": 1, "num_gpu_blocks_override": 64, "max_num_seqs": 4}
    with LLM(str(tiny_model), **options) as llm:
        params = SamplingParams(temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=2)
        (wanted,) = llm.generate([prompt], params, use_tqdm=False)
    positions = [*(wanted.prompt_logprobs or ()), *(wanted.outputs[0].logprobs or ())]
    token_ids = [*wanted.prompt_token_ids, *wanted.outputs[0].token_ids]

    def ask(**more: Any) -> Any:
        fields = {"model": "tiny", "prompt": prompt, "max_tokens": 4, "temperature": 0, "logprobs": 2, "echo": True}
        return openai_client.completions.create(**{**fields, **more})

    for _ in range(2):  # the second time from the cache
        choice = ask(extra_body={"prompt_logprobs": 1}).choices[0]
        assert choice.text == prompt + wanted.outputs[0].text
        logprobs = choice.logprobs
        assert len(logprobs.tokens) == len(token_ids) and logprobs.token_logprobs[0] is logprobs.top_logprobs[0] is None
        for i, (position, token_id) in enumerate(zip(positions, token_ids, strict=True)):
            if position is not None:
                assert logprobs.tokens[i] == position[token_id].decoded_token
                assert logprobs.token_logprobs[i] == pytest.approx(position[token_id].logprob, abs=1e-4)
                best = max(entry.logprob for entry in position.values())
                assert max(logprobs.top_logprobs[i].values()) == pytest.approx(best, abs=1e-4)
            assert logprobs.text_offset[i] == sum(map(len, logprobs.tokens[:i]))
        rows = choice.prompt_logprobs
        assert (
            rows[0] is None and [str(i) in row for i, row in zip(token_ids[1:], rows[1:], strict=False)].count(0) == 0
        )
    alone = ask(max_tokens=0)
    assert alone.choices[0].text == prompt and alone.usage.completion_tokens == 0
    assert alone.choices[0].logprobs.tokens == logprobs.tokens[: len(wanted.prompt_token_ids)]
    first, *others = ask(stream=True)
    assert first.choices[0].logprobs.tokens == logprobs.tokens[: len(wanted.prompt_token_ids) + 1]
    assert sum(len(chunk.choices[0].logprobs.tokens) for chunk in others) == 3
    chosen = ask(echo=False, extra_body={"prompt_logprob_token_ids": [5, 9], "prompt_logprob_start": 3})
    assert len(chosen.choices[0].prompt_token_id_logprobs) == len(wanted.prompt_token_ids) - 1 - 3
    with pytest.raises(openai.BadRequestError, match="prompt_logprobs cannot be had with stream"):
        ask(stream=True, extra_body={"prompt_logprobs": 1})


def test_stop_and_extra_parameters(openai_client: OpenAI) -> None:
    def ask(**more: Any) -> Any:
        return openai_client.completions.create(model="tiny", prompt="Once upon", max_tokens=20, temperature=0, **more)

    whole = ask(extra_body={"ignore_eos": True, "return_token_ids": True}).choices[0]
    assert len(whole.token_ids) == 20
    stopped = ask(extra_body={"ignore_eos": True, "stop_token_ids": [whole.token_ids[5]]}).choices[0]
    assert stopped.finish_reason == "stop" and stopped.stop_reason == whole.token_ids[5]
    cut = whole.text[3:5]
    at_text = ask(stop=[cut], extra_body={"ignore_eos": True, "include_stop_str_in_output": True}).choices[0]
    assert at_text.stop_reason == cut and at_text.text == whole.text[: whole.text.index(cut) + len(cut)]


def test_models(openai_client: OpenAI) -> None:
    models = openai_client.models.list().data
    assert [model.id for model in models] == ["tiny", "alias"]
    assert openai_client.models.retrieve("alias").id == "alias"
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("other/model")


def test_responses(openai_client: OpenAI) -> None:
    settings: Any = {"model": "tiny", "max_output_tokens": 8, "temperature": 0}
    first = openai_client.responses.create(input="hello", instructions="be brief", **settings)
    assert first.status == "incomplete" and first.output_text and first.usage is not None
    assert first.incomplete_details is not None and first.incomplete_details.reason == "max_output_tokens"
    assert openai_client.responses.retrieve(first.id) == first
    second = openai_client.responses.create(input="more", previous_response_id=first.id, **settings)
    assert second.usage is not None and second.usage.input_tokens > first.usage.input_tokens + 2
    with openai_client.responses.stream(input="hello", instructions="be brief", **settings) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "response.created" and kinds[-1] == "response.incomplete"
    assert "response.output_text.delta" in kinds
    events = list(openai_client.responses.create(input="hello", instructions="be brief", stream=True, **settings))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == first.output_text
    openai_client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        openai_client.responses.retrieve(first.id)


def test_background_responses(openai_client: OpenAI) -> None:
    settings: Any = {"model": "tiny", "input": "hello", "background": True, "extra_body": {"ignore_eos": True}}
    asked = openai_client.responses.create(max_output_tokens=5, **settings)
    deadline = time.monotonic() + 20
    while asked.status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
        asked = openai_client.responses.retrieve(asked.id)
    assert asked.status == "incomplete" and asked.output_text
    long = openai_client.responses.create(**settings)
    cancelled = openai_client.responses.cancel(long.id)
    assert cancelled.status == "cancelled"


def test_errors(openai_client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        openai_client.chat.completions.create(model="other", messages=HELLO)
    assert missing.value.param == "model"
    for more in (
        {"temperature": 5},
        {"logit_bias": {"1000000": 1}},
        {"max_tokens": 10**6},
        {"stream": True, "top_p": 2},
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            openai_client.chat.completions.create(model="tiny", messages=HELLO, **more)  # type: ignore[call-overload]
        assert refused.value.param == next(name for name in more if name != "stream")
