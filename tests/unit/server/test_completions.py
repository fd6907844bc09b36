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


def test_echo_with_log_probabilities_begins_with_the_prompt_s() -> None:
    async def work() -> None:
        async with scripted_server(" sat on") as server:
            ids = server.engine.get_tokenizer().encode("the cat")
            alone = await server.json(URL, prompt="the cat", logprobs=2)
            body: dict[str, Any] = {"prompt": ["the cat", "the cat"], "echo": True, "logprobs": 2, "n": 2, "seed": 1}
            whole = await server.json(URL, **body)
            for choice in whole["choices"]:
                logprobs = choice["logprobs"]
                assert choice["text"] == "the cat sat on" and "".join(logprobs["tokens"]) == "the cat sat on<eos>"
                assert logprobs["token_logprobs"][: len(ids)] == [None, *(-float(i) for i in range(1, len(ids)))]
                assert logprobs["top_logprobs"][0] is None and logprobs["text_offset"][0] == 0
                assert len(logprobs["top_logprobs"][1]) == 3, "the two likeliest, and the prompt's own"
                starts = [sum(map(len, logprobs["tokens"][:i])) for i in range(len(logprobs["tokens"]))]
                assert logprobs["text_offset"] == starts
                for name in ("tokens", "token_logprobs", "top_logprobs"):
                    assert logprobs[name][len(ids) :] == alone["choices"][0]["logprobs"][name]
                assert choice["prompt_logprobs"] is None, "nobody asked for the field"
            server.core.rows_after = 2  # others of the n may be ahead of the one that brings the prompt's
            parts: dict[int, dict[str, list[Any]]] = {}
            texts = [""] * 4
            for chunk in (await server.chunks(URL, **body))[:-1]:
                CompletionResponse.model_validate(chunk)
                for choice in chunk["choices"]:
                    texts[choice["index"]] += choice["text"]
                    for name, values in choice["logprobs"].items():
                        parts.setdefault(choice["index"], {}).setdefault(name, []).extend(values)
            assert texts == [choice["text"] for choice in whole["choices"]]
            assert [parts[i] for i in range(4)] == [choice["logprobs"] for choice in whole["choices"]]

    run(work)


def test_an_echo_of_log_probabilities_alone() -> None:
    async def work() -> None:
        async with scripted_server("unseen") as server:
            ids = server.engine.get_tokenizer().encode("the cat")
            body: dict[str, Any] = {"prompt": "the cat", "echo": True, "max_tokens": 0, "logprobs": 0}
            answer = await server.json(URL, **body)
            (choice,) = answer["choices"]
            assert choice["text"] == "the cat" == "".join(choice["logprobs"]["tokens"])
            assert len(choice["logprobs"]["token_logprobs"]) == len(ids)
            assert choice["logprobs"]["top_logprobs"][1] == {choice["logprobs"]["tokens"][1]: -1.0}
            assert choice["finish_reason"] == "length"
            assert answer["usage"] == answer["usage"] | {"prompt_tokens": len(ids), "completion_tokens": 0}
            (chunk, done) = await server.chunks(URL, **body)
            assert done == "[DONE]" and chunk["choices"][0]["logprobs"] == choice["logprobs"]
            assert chunk["choices"][0]["text"] == "the cat" and server.core.added[-1].params.max_tokens == 1

    run(work)


def test_prompt_logprobs() -> None:
    async def work() -> None:
        async with scripted_server("x") as server:
            ids = server.engine.get_tokenizer().encode("the cat")
            answer = await server.json(URL, prompt="the cat", prompt_logprobs=1, n=2, seed=1)
            asked = [submit.params.prompt_logprobs for submit in server.core.added]
            assert asked == [1, None], "the first of n asks for all"
            for choice in answer["choices"]:
                rows = choice["prompt_logprobs"]
                assert rows[0] is None and len(rows) == len(ids) and choice["logprobs"] is None
                text = server.engine.get_tokenizer().decode([ids[1]])
                assert rows[1][str(ids[1])] == {"logprob": -1.0, "rank": 9, "decoded_token": text}
                assert list(rows[1]) == [str(ids[1]), "0"]
            chat = await server.json(
                "/v1/chat/completions", messages=[{"role": "user", "content": "hi"}], prompt_logprobs=0
            )
            assert chat["prompt_logprobs"][0] is None and chat["prompt_logprobs"][2] is not None
            for url in (URL, "/v1/chat/completions"):
                for field, value in (("prompt_logprobs", 0), ("prompt_logprob_token_ids", [5])):
                    messages = [{"role": "user", "content": "hi"}]
                    refused = await server.post(url, prompt="a", messages=messages, stream=True, **{field: value})
                    assert refused.status_code == 400 and refused.json()["error"]["param"] == field
            beyond = await server.post(URL, prompt="the cat", prompt_logprob_token_ids=[5], prompt_logprob_start=99)
            assert beyond.status_code == 400 and beyond.json()["error"]["param"] == "prompt_logprob_start"
            other = await server.post("/v1/responses", input="a", prompt_logprobs=1)
            assert other.status_code == 400 and other.json()["error"]["param"] == "prompt_logprobs"

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
        ({"prompt": "a", "prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt": "a", "prompt_logprobs": -2}, "prompt_logprobs"),
        ({"prompt": "a", "echo": True, "logprobs": 21}, "logprobs"),
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
