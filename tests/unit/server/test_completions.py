"""Completions: forms of prompts, echo, log-probabilities and their offsets, streams."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.server.protocol.completions import CompletionResponse
from tests.unit.server.scripted_server import run, scripted_server

URL = "/v1/completions"


def test_every_form_of_a_prompt_and_the_order_of_choices() -> None:
    async def work() -> None:
        async with scripted_server(lambda submit: f"{len(submit.prompt_token_ids)}!") as server:
            texts = await server.json(URL, prompt=["the", "the cat sat"], n=2, temperature=1)
            assert [choice["index"] for choice in texts["choices"]] == [0, 1, 2, 3]
            first, second = texts["choices"][0]["text"], texts["choices"][2]["text"]
            assert first == texts["choices"][1]["text"] != second
            for prompt, lengths in (("the", first), ([5, 6, 7], "3!"), ([[5], [6, 7]], "1!2!")):
                answer = await server.json(URL, prompt=prompt)
                assert "".join(choice["text"] for choice in answer["choices"]) == lengths
            assert server.core.added[-1].params.max_tokens == 16
            await server.json(URL, prompt="x", max_tokens=None)
            assert server.core.added[-1].params.max_tokens > 400

    run(work)


def test_streams_say_what_whole_answers_say() -> None:
    async def work() -> None:
        async with scripted_server("the cat sat on the mat 你好") as server:
            body: dict[str, Any] = {"prompt": ["hello", "bye"], "n": 2, "logprobs": 2, "return_token_ids": True}
            whole = await server.json(URL, **body)
            chunks = await server.chunks(URL, **body)
            assert chunks.pop() == "[DONE]"
            texts, logprobs, ids, prompts = ({index: [] for index in range(4)} for _ in range(4))
            for chunk in chunks:
                CompletionResponse.model_validate(chunk)
                for choice in chunk["choices"]:
                    index = choice["index"]
                    texts[index] += choice["text"]
                    logprobs[index].append(choice["logprobs"])
                    ids[index] += choice["token_ids"]
                    prompts[index] += choice.get("prompt_token_ids", [])
            for choice in whole["choices"]:
                index = choice["index"]
                assert "".join(texts[index]) == choice["text"]
                for key, values in choice["logprobs"].items():
                    assert [value for part in logprobs[index] for value in part[key]] == values
                assert ids[index] == choice["token_ids"] and prompts[index] == choice["prompt_token_ids"]
                offsets = choice["logprobs"]["text_offset"]
                assert offsets[0] == 0 and offsets[1] == len(choice["logprobs"]["tokens"][0])
                assert all(token in top for token, top in zip(
                    choice["logprobs"]["tokens"], choice["logprobs"]["top_logprobs"], strict=True))  # fmt: skip

    run(work)


def test_echo() -> None:
    async def work() -> None:
        async with scripted_server(" sat") as server:
            answer = await server.json(URL, prompt="the cat", echo=True)
            assert answer["choices"][0]["text"] == "the cat sat"
            chunks = await server.chunks(URL, prompt="the cat", echo=True)
            assert "".join(choice["text"] for chunk in chunks[:-1] for choice in chunk["choices"]) == "the cat sat"
            num_asked = len(server.core.added)
            ids = server.engine.get_tokenizer().encode("the cat")
            for prompt in ("the cat", ids):
                only = await server.json(URL, prompt=prompt, echo=True, max_tokens=0)
                assert only["choices"][0]["text"] == "the cat" and only["usage"]["completion_tokens"] == 0
            assert len(server.core.added) == num_asked

    run(work)


def test_truncation() -> None:
    async def work() -> None:
        async with scripted_server("x") as server:
            ids = list(range(10, 40))
            await server.json(URL, prompt=ids, truncate_prompt_tokens=3)
            assert server.core.added[-1].prompt_token_ids == [37, 38, 39]
            await server.json(URL, prompt=ids, truncate_prompt_tokens=3, truncation_side="right")
            assert server.core.added[-1].prompt_token_ids == [10, 11, 12]
            await server.json(URL, prompt=[5] * 600, truncate_prompt_tokens=-1, max_tokens=100)
            assert len(server.core.added[-1].prompt_token_ids) == 412

    run(work)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": [10**6]}, "prompt_token_ids[0]"),
        ({"prompt": [[]]}, "prompt_token_ids"),
        ({"prompt": [5] * 600}, "prompt"),
        ({}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a", [5]]}, "prompt[1]"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 0}, "best_of"),
        ({"prompt": "a", "best_of": 2, "n": 3}, "best_of"),
        ({"prompt": "a", "length_penalty": 2}, "length_penalty"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, "echo"),
        ({"prompt": "a", "logprobs": 50}, "logprobs"),
        ({"prompt": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"prompt": "a", "prompt_embeds": "x"}, "prompt_embeds"),
    ],
)
def test_what_cannot_be_served_is_named(body: dict[str, Any], param: str) -> None:
    async def work() -> None:
        async with scripted_server("x") as server:
            for stream in (False, True):
                response = await server.post(URL, stream=stream, **body)
                assert response.status_code == 400 and response.json()["error"]["param"] == param, response.text
            assert not server.core.added

    run(work)


def test_one_wrong_prompt_of_several_runs_none() -> None:
    async def work() -> None:
        async with scripted_server("x") as server:
            assert (await server.post(URL, prompt=["a", "b " * 600])).status_code == 400
            assert not server.core.added and server.state.num_active == 0

    run(work)
