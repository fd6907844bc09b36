"""Every field that says how tokens are chosen, over HTTP: what is asked holds in the answer, whole and streamed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from octavo import LLM, SamplingParams
from octavo.core.params import BeamSearchParams
from octavo.tokenization.tokenizer import Tokenizer
from tests.server.serving import serving, until_ready

HELLO: Any = [{"role": "user", "content": "hello to the cat"}]
PROMPT = "Once upon a time"
OPTIONS: dict[str, Any] = {"load_format": "dummy", "threads": 1, "num_gpu_blocks_override": 64, "max_num_seqs": 8}
HOME = "tests.server.processors"


@pytest.fixture(scope="module")
def url(tiny_model: Path) -> Iterator[str]:
    """A server with processors of its operator and a reasoning parser."""
    compact = json.dumps({"disable_any_whitespace": True})
    flags = ["--structured-outputs-config", compact]
    flags += ["--served-model-name", "tiny", "--reasoning-parser", "qwen3", "--tool-call-parser", "hermes"]
    flags += ["--logits-processors", f"{HOME}:Target"]
    flags += ["--request-logits-processors", f"only={HOME}:only", f"fails={HOME}:fails"]
    with serving(tiny_model, *flags) as process:
        with httpx.Client(base_url=process.url) as client:
            until_ready(client)
        yield process.url
        assert process.process.poll() is None, process.log


@pytest.fixture
def api(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return Tokenizer.from_directory(tiny_model)


def body(**fields: Any) -> dict[str, Any]:
    given = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "ignore_eos": True, "return_token_ids": True}
    return {**given, **fields}


def ask(api: httpx.Client, **fields: Any) -> Any:
    """The first choice of a completion."""
    response = api.post("/v1/completions", json=body(**fields))
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def refused(api: httpx.Client, path: str = "/v1/completions", **fields: Any) -> dict[str, Any]:
    response = api.post(path, json=body(**fields))
    assert response.status_code == 400, response.text
    return response.json()["error"]


def streamed(api: httpx.Client, **fields: Any) -> list[Any]:
    """The choices of a stream's chunks."""
    response = api.post("/v1/completions", json=body(stream=True, **fields))
    lines = [line[6:] for line in response.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", response.text
    return [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]


def total(choice: Any) -> float:
    """Of the log-probabilities of a completion."""
    return math.fsum(choice.logprobs.token_logprobs)


# ---- which tokens there may be


def test_a_bias_forces_a_token(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    (token_id,) = tokenizer.encode("q")
    bias = {str(token_id): 100}
    answer = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=9, logit_bias=bias)
    assert answer.choices[0].text == "q" * 9
    chat = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=9, n=2, logit_bias=bias)
    assert [choice.message.content for choice in chat.choices] == ["q" * 9] * 2


def test_only_allowed_tokens(api: httpx.Client) -> None:
    allowed = [40, 50, 60]
    assert set(ask(api, allowed_token_ids=allowed, max_tokens=40)["token_ids"]) == set(allowed)
    for wrong in ([], [10**6], [-1]):
        assert refused(api, allowed_token_ids=wrong)["param"] == "allowed_token_ids"


def test_a_bad_word_never_comes(api: httpx.Client, tokenizer: Tokenizer) -> None:
    """The model may say z and q alone, and says them in this order unless it is told not to."""
    letters = [*tokenizer.encode("z"), *tokenizer.encode("q")]
    fields = {"allowed_token_ids": letters, "max_tokens": 40}
    for seed in range(3):
        assert "zq" in ask(api, **fields, seed=seed)["text"]
        whole = ask(api, **fields, seed=seed, bad_words=["zq"])["text"]
        assert len(whole) == 40 and "zq" not in whole
        assert "".join(choice["text"] for choice in streamed(api, **fields, seed=seed, bad_words=["zq"])) == whole
    assert refused(api, bad_words=[" "])["param"] == "bad_words"


# ---- which of several


def test_the_best_of_several(client: openai.OpenAI) -> None:
    settings: Any = {"model": "tiny", "prompt": PROMPT, "max_tokens": 8, "seed": 5, "logprobs": 0}
    best = client.completions.create(n=2, best_of=4, **settings)
    assert [choice.index for choice in best.choices] == [0, 1]
    four = sorted(client.completions.create(n=4, **settings).choices, key=total, reverse=True)
    assert [choice.text for choice in best.choices] == [choice.text for choice in four[:2]]
    assert [total(choice) for choice in best.choices] == pytest.approx([total(choice) for choice in four[:2]], abs=1e-4)
    assert total(four[0]) > total(four[1]) > total(four[2])
    for more in ({"n": 3, "best_of": 2}, {"best_of": 2, "stream": True}):
        with pytest.raises(openai.BadRequestError) as error:
            client.completions.create(**{**settings, **more})
        assert error.value.param == "best_of"


@pytest.mark.parametrize("length_penalty", [1.0, -2.0])
def test_beam_search_is_pythons(api: httpx.Client, tiny_model: Path, length_penalty: float) -> None:
    with LLM(str(tiny_model), **OPTIONS) as llm:
        params = SamplingParams(
            n=2, best_of=4, use_beam_search=True, temperature=0, max_tokens=7, length_penalty=length_penalty
        )
        (wanted,) = llm.generate([PROMPT], params, use_tqdm=False)
        beams = BeamSearchParams(beam_width=4, max_tokens=7, length_penalty=length_penalty)
        (searched,) = llm.beam_search([PROMPT], beams)
    fields = {"n": 2, "best_of": 4, "use_beam_search": True, "temperature": 0, "length_penalty": length_penalty}
    response = api.post("/v1/completions", json=body(**fields, max_tokens=7, ignore_eos=False))
    choices = response.json()["choices"]
    assert [(choice["text"], choice["token_ids"]) for choice in choices] == [
        (one.text, one.token_ids) for one in wanted.outputs
    ]
    tails = [one.tokens[-len(choice["token_ids"]) :] for one, choice in zip(searched.sequences, choices, strict=False)]
    assert tails == [choice["token_ids"] for choice in choices]
    assert refused(api, **fields, stream=True)["param"] in ("use_beam_search", "best_of")


# ---- how long


def test_a_repetition_ends_the_answer(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    settings: Any = {"model": "tiny", "max_tokens": 30, "logit_bias": {str(tokenizer.encode("q")[0]): 100}}
    extra = {"ignore_eos": True, "repetition_detection": {"max_pattern_size": 2, "min_count": 5}}
    ended = client.completions.create(prompt=PROMPT, extra_body=extra, **settings).choices[0]
    assert (ended.finish_reason, ended.text) == ("repetition", "q" * 5)
    stream = client.completions.create(prompt=PROMPT, extra_body=extra, stream=True, **settings)
    assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "repetition"
    chat = client.chat.completions.create(messages=HELLO, extra_body=extra, **settings).choices[0]
    assert (chat.finish_reason, chat.message.content) == ("repetition", "q" * 5)
    with pytest.raises(openai.BadRequestError, match="min_count"):
        client.completions.create(
            prompt=PROMPT, extra_body={"repetition_detection": {"max_pattern_size": 2}}, **settings
        )


def test_tokens_of_a_chunk(api: httpx.Client) -> None:
    """A reader that is late finds more in a chunk."""
    sizes = [len(choice["token_ids"]) for choice in streamed(api, stream_interval=5, max_tokens=40)]
    assert sum(sizes) == 40 and 2 <= len(sizes) <= 9
    assert all(size >= 5 for size in sizes[1:-1])
    assert refused(api, stream=True, stream_interval=0)["param"] == "stream_interval"


def test_a_prompt_is_cut(api: httpx.Client) -> None:
    prompt = list(range(100, 120))
    for fields, kept in (
        ({"truncate_prompt_tokens": 5}, prompt[-5:]),
        ({"truncate_prompt_tokens": 5, "truncation_side": "right"}, prompt[:5]),
        ({"truncate_prompt_tokens": -1}, prompt),
    ):
        response = api.post("/v1/completions", json=body(prompt=prompt, temperature=0, **fields)).json()
        choice = response["choices"][0]
        assert choice["prompt_token_ids"] == kept and response["usage"]["prompt_tokens"] == len(kept)
        assert choice["token_ids"] == ask(api, prompt=kept, temperature=0)["token_ids"]
    assert refused(api, truncate_prompt_tokens=0)["param"] == "truncate_prompt_tokens"


def test_thoughts_are_brought_to_their_end(api: httpx.Client, tokenizer: Tokenizer) -> None:
    """The model is within thoughts that the prompt has opened, and would never end them."""
    messages = [*HELLO, {"role": "assistant", "content": "<think>"}]
    fields = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False, "prompt": None}
    fields |= {"max_tokens": 40, "seed": 3}

    def answer(**more: Any) -> Any:
        response = api.post("/v1/chat/completions", json=body(**fields, **more))
        assert response.status_code == 200, response.text
        usage = response.json()["usage"]
        assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] <= usage["completion_tokens"] == 40
        return response.json()["choices"][0]

    endless = answer()
    assert not endless["message"]["content"] and endless["message"]["reasoning"]
    ended = answer(thinking_token_budget=6)
    end = tokenizer.encode("</think>")
    token_ids = ended["token_ids"]
    assert token_ids[6 : 6 + len(end)] == end and token_ids[:6] == endless["token_ids"][:6]
    assert ended["message"]["reasoning"] == tokenizer.decode(token_ids[:6])
    assert ended["message"]["content"] == tokenizer.decode(token_ids[6 + len(end) :])
    assert answer(thinking_token_budget=-1)["token_ids"] == endless["token_ids"]


def test_a_budget_needs_a_parser(http: httpx.Client) -> None:
    error = refused(http, thinking_token_budget=6)
    assert error["param"] == "thinking_token_budget" and "--reasoning-parser" in error["message"]


# ---- log-probabilities


def test_named_tokens_beside_the_likeliest(api: httpx.Client, tokenizer: Tokenizer) -> None:
    named = [*tokenizer.encode("q"), *tokenizer.encode("z")]
    fields = {"logprobs": 1, "logprob_token_ids": named, "return_tokens_as_token_ids": True, "seed": 4}
    choice = ask(api, **fields)
    plain = ask(api, logprobs=1, return_tokens_as_token_ids=True, seed=4)
    wanted = ask(api, logprobs=20, return_tokens_as_token_ids=True, seed=4)["logprobs"]["top_logprobs"]
    assert choice["token_ids"] == plain["token_ids"]
    chat = {"messages": HELLO, "logprobs": True, "top_logprobs": 1, "logprob_token_ids": named, "prompt": None}
    response = api.post("/v1/chat/completions", json=body(**chat, max_tokens=3)).json()
    for entry in response["choices"][0]["logprobs"]["content"]:
        assert {"q", "z"} <= {top["token"] for top in entry["top_logprobs"]} and len(entry["top_logprobs"]) <= 3
    pairs = zip(choice["logprobs"]["top_logprobs"], plain["logprobs"]["top_logprobs"], wanted, strict=True)
    for top, plain_top, wide in pairs:
        assert set(top) == set(plain_top) | {f"token_id:{token_id}" for token_id in named}
        for name in set(top) & set(wide):
            assert top[name] == pytest.approx(wide[name], abs=1e-4)


def test_modes_of_one_request_each(api: httpx.Client) -> None:
    """With a temperature T, differences of raw numbers are T times those of processed ones."""
    modes = ("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits")
    settings = {"logprobs": 4, "temperature": 0.5, "seed": 8, "return_tokens_as_token_ids": True, "max_tokens": 5}
    found = {mode: ask(api, logprobs_mode=mode, **settings)["logprobs"]["top_logprobs"] for mode in modes}
    default = ask(api, **settings)["logprobs"]["top_logprobs"]
    assert default == found["raw_logprobs"]
    for position in range(5):
        rows = {mode: found[mode][position] for mode in modes}
        assert len({tuple(sorted(row)) for row in rows.values()}) == 1, "the same tokens"
        first, *others = rows["raw_logits"]
        for other in others:
            gaps = {mode: row[other] - row[first] for mode, row in rows.items()}
            assert gaps["raw_logprobs"] == pytest.approx(gaps["raw_logits"], abs=1e-4)
            assert gaps["processed_logits"] == pytest.approx(2 * gaps["raw_logits"], abs=1e-4)
            assert gaps["processed_logprobs"] == pytest.approx(2 * gaps["raw_logits"], abs=1e-4)
        for name, value in rows["raw_logits"].items():
            assert rows["processed_logits"][name] == pytest.approx(2 * value, abs=1e-4)
        # random weights make next to no difference between tokens: this is equal but for roundings
        assert max(rows["raw_logprobs"].values()) - 1e-6 < max(rows["processed_logprobs"].values()) < 0


def test_of_a_prompt(api: httpx.Client) -> None:
    """The same whether asked for as such, echoed, or forced to be said."""
    prompt = [10, 60, 61, 62, 90, 91]
    choice = ask(api, prompt=prompt, prompt_logprobs=2, max_tokens=1)
    rows = choice["prompt_logprobs"]
    assert rows[0] is None and len(rows) == len(prompt)
    scored = [row[str(token_id)]["logprob"] for token_id, row in zip(prompt[1:], rows[1:], strict=True)]
    assert all(any(entry["rank"] == 1 for entry in row.values()) for row in rows[1:])
    echoed = ask(api, prompt=prompt, echo=True, logprobs=1, max_tokens=1)["logprobs"]["token_logprobs"]
    assert echoed[0] is None and echoed[1:6] == pytest.approx(scored, abs=1e-4)
    traced = ask(api, prompt=prompt[:3], trace_decode_token_ids=prompt[3:], logprobs=0, max_tokens=3)
    assert traced["token_ids"] == prompt[3:]
    assert traced["logprobs"]["token_logprobs"] == pytest.approx(scored[2:], abs=1e-4)
    chat = api.post("/v1/chat/completions", json=body(messages=HELLO, prompt_logprobs=1, max_tokens=1)).json()
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]


# ---- logits processors


def test_registered_processors(api: httpx.Client) -> None:
    def call(name: str, **arguments: Any) -> list[dict[str, Any]]:
        return [{"name": name, "arguments": arguments}]

    assert set(ask(api, logits_processors=call("only", token_ids=[41, 42]), max_tokens=30)["token_ids"]) == {41, 42}
    sizes = streamed(api, logits_processors=call("only", token_ids=[43]), max_tokens=6)
    assert [token_id for choice in sizes for token_id in choice["token_ids"]] == [43] * 6
    for processors, words in (
        (call("only", tokens=[1]), "only refuses its arguments"),
        (call("only"), "only refuses its arguments"),
        (call("never"), "there is no logits processor 'never'; registered are: only, fails"),
        ([{"name": "only", "argument": {}}], "not 'argument'"),
        ([{"arguments": {}}], "logits_processors.name"),
        (["only"], ""),
    ):
        error = refused(api, logits_processors=processors)
        assert words in error["message"] and error["param"].startswith("logits_processors"), error
    failed = api.post("/v1/completions", json=body(logits_processors=call("fails", after=3)))
    assert failed.status_code == 500 and "LookupError: as asked" in failed.json()["error"]["message"], failed.text
    assert len(ask(api)["token_ids"]) == 12


def test_processors_of_the_engine(api: httpx.Client) -> None:
    assert ask(api, vllm_xargs={"target": 77})["token_ids"] == [77] * 12
    assert "target must be a token id, got 'x'" in refused(api, vllm_xargs={"target": "x"})["message"]
    assert len(set(ask(api, seed=1)["token_ids"])) > 1


def test_processors_that_a_server_does_not_have(http: httpx.Client) -> None:
    error = refused(http, vllm_xargs={"target": 77})
    assert error["param"] == "vllm_xargs" and "no logits processors" in error["message"]
    error = refused(http, logits_processors=[{"name": "only", "arguments": {"token_ids": [1]}}])
    assert error["param"] == "logits_processors" and "registered are: none" in error["message"]


# ---- forms together with the rest


def test_a_form_with_stop_strings_min_tokens_and_logprobs(api: httpx.Client) -> None:
    fields = {"structured_outputs": {"regex": "[a-c]{20,30}d"}, "max_tokens": 40, "logprobs": 2, "ignore_eos": False}
    reasons = set()
    for seed in range(6):
        free = ask(api, **fields, seed=seed)
        assert re.fullmatch("[a-c]{20,30}d", free["text"]) and free["finish_reason"] == "stop"
        stopped = ask(api, **fields, seed=seed, stop=["c"], min_tokens=8)
        num_tokens = len(stopped["token_ids"])
        assert free["token_ids"][:num_tokens] == stopped["token_ids"] and num_tokens >= 8
        assert len(stopped["logprobs"]["token_logprobs"]) == num_tokens
        assert stopped["stop_reason"] in ("c", None)
        reasons.add(stopped["stop_reason"])
        if stopped["stop_reason"] == "c":
            assert free["text"].startswith(stopped["text"] + "c")
        assert all(value > -9999 for value in stopped["logprobs"]["token_logprobs"])
    assert "c" in reasons


def tool(name: str, argument: str) -> dict[str, Any]:
    parameters: dict[str, Any] = {"type": "object", "properties": {argument: {"enum": [1, 2]}}}
    parameters |= {"required": [argument], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def test_allowed_tools(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    tools: Any = [tool("look", "x"), tool("count", "n"), tool("wait", "s")]

    def choice(mode: str, *names: str) -> Any:
        allowed = [{"type": "function", "function": {"name": name}} for name in names]
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": allowed}}

    settings: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 120, "tools": tools}
    settings["parallel_tool_calls"] = False
    settings["logit_bias"] = {str(tokenizer.encode("<")[0]): -100}  # no thoughts, which may come before the call
    called = set()
    for seed in range(4):
        answer = client.chat.completions.create(seed=seed, tool_choice=choice("required", "count", "wait"), **settings)
        (call,) = answer.choices[0].message.tool_calls or ()
        assert answer.choices[0].finish_reason == "tool_calls"
        schema = next(one for one in tools if one["function"]["name"] == call.function.name)["function"]["parameters"]  # type: ignore[union-attr]
        jsonschema.validate(json.loads(call.function.arguments), schema)  # type: ignore[union-attr]
        called.add(call.function.name)  # type: ignore[union-attr]
    assert called <= {"count", "wait"}
    free = client.chat.completions.create(tool_choice=choice("auto", "look"), **{**settings, "max_tokens": 5})
    assert free.choices[0].message.tool_calls is None
    for wrong in (choice("required", "never"), choice("always", "look"), choice("required")):
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(tool_choice=wrong, **settings)
        assert error.value.param == "tool_choice"
